"""Train a density and a generator on stacked MNIST: train/mnist.py with three digits as RGB.

For example: python train/stacked_mnist.py --preset quick
"""

import sys

from mnist import main  # type: ignore[import-not-found]  # the script beside this one

if __name__ == "__main__":
    sys.exit(main(dataset="stacked_mnist"))
