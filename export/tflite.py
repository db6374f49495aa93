"""Export a run's density, and its generator if there is one, as a TFLite file.

    python export/tflite.py runs/mnist
    python export/tflite.py runs/mnist --output mnist.tflite

Signatures: log_density, score, decode, sample; see tfdde/serving.py.
"""

import argparse
import sys
from pathlib import Path

from tfdde import serving


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Export the models of a run folder as one TFLite file with the signatures "
        "log_density, score and, with a generator, decode and sample; load it again and "
        "compare it with Keras. Needs ai-edge-litert: pip install 'tfdde[lite]'.",
        epilog="Exit code: 0; 1 if the models can't be converted or the file disagrees with "
        "Keras (it is not kept); 2 if there is nothing to export.",
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder with density.keras and/or generator.keras"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="file to write, with its description in FILE.json (default: RUN/model.tflite)",
    )
    args = parser.parse_args(argv)
    output = args.output or args.run / "model.tflite"
    return serving.export_run(serving.export_tflite, args.run, output)


if __name__ == "__main__":
    sys.exit(main())
