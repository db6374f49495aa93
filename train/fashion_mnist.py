"""Train a density and a generator on Fashion-MNIST: train/mnist.py with other images.

For example: python train/fashion_mnist.py --preset quick
"""

import sys

from mnist import main  # type: ignore[import-not-found]  # the script beside this one

if __name__ == "__main__":
    sys.exit(main(dataset="fashion_mnist"))
