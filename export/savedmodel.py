"""Export a run's density, and its generator if there is one, as a SavedModel.

    python export/savedmodel.py runs/mnist
    python export/savedmodel.py runs/mnist --output /models/mnist
    python export/savedmodel.py runs/mnist --candidates 8

Signatures: log_density, score, decode, sample, sample_rows; see tfdde/serving.py.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tfdde import runs, serving


def main(argv: list[str] | None = None) -> int:
    runs.print_any_character()
    parser = argparse.ArgumentParser(
        description="Export the models of a run folder as a SavedModel with the signatures "
        "log_density (the default), score and, with a generator, decode, sample and sample_rows; "
        "load it again and compare it with Keras. With tensorflow-serving-api (pip install "
        "'tfdde[serving]') it has warm-up requests.",
        epilog="Exit code: 0; 1 if the artifact disagrees with Keras (it is not kept); 2 if "
        "there is nothing to export.",
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder with density.keras and/or generator.keras"
    )
    parser.add_argument(
        "--output",
        metavar="BASE",
        type=Path,
        help="folder of the model; the next version is written to it: BASE/1, then BASE/2, as "
        "TensorFlow Serving wants it (default: RUN/savedmodel)",
    )
    runs.add_candidate_options(parser)
    args = parser.parse_args(argv)
    output = args.output or args.run / "savedmodel"
    choice = {"candidates": args.candidates, "compare_at": args.compare_at}
    return serving.export_run(partial(serving.export_savedmodel, **choice), args.run, output)


if __name__ == "__main__":
    sys.exit(main())
