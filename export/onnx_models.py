"""Export a run's density, and its generator if there is one, as ONNX files.

    python export/onnx_models.py runs/mnist
    python export/onnx_models.py runs/mnist --output models
    python export/onnx_models.py runs/mnist --candidates 8

The folder is a model repository, as Triton serves it: log_density, score, decode, sample.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tfdde import runs, serving


def main(argv: list[str] | None = None) -> int:
    runs.print_any_character()
    parser = argparse.ArgumentParser(
        description="Export the models of a run folder as ONNX files, one for each of the "
        "signatures log_density, score and, with a generator, decode and sample; load them again "
        "and compare them with Keras. Needs tf2onnx and onnxruntime: pip install 'tfdde[onnx]'.",
        epilog="Exit code: 0; 1 if the models can't be converted or a file disagrees with "
        "Keras (none is kept); 2 if there is nothing to export.",
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder with density.keras and/or generator.keras"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="folder to write (default: RUN/onnx)"
    )
    runs.add_candidate_options(parser)
    args = parser.parse_args(argv)
    output = args.output or args.run / "onnx"
    choice = {"candidates": args.candidates, "compare_at": args.compare_at}
    return serving.export_run(partial(serving.export_onnx, **choice), args.run, output)


if __name__ == "__main__":
    sys.exit(main())
