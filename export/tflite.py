"""Export a run's density, and its generator if there is one, as a TFLite file.

    python export/tflite.py runs/mnist
    python export/tflite.py runs/mnist --output mnist.tflite
    python export/tflite.py runs/mnist --float16
    python export/tflite.py runs/mnist --batch-size 64 --output browser.tflite
    python export/tflite.py runs/mnist --candidates 8

Signatures: log_density, score, decode, sample; see tfdde/serving.py.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tfdde import runs, serving


def main(argv: list[str] | None = None) -> int:
    runs.print_any_character()
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
        help="file to write, with its description in FILE.json and FILE.md "
        "(default: RUN/model.tflite)",
    )
    parser.add_argument(
        "--float16",
        action="store_true",
        help="round the weights to float16, for half the size; refused if a signature is then off "
        f"by more than {serving.FLOAT16_BOUND:g} of its largest value",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=runs.positive_int,
        help="rows of every call, as browsers need it fixed (default: any number)",
    )
    runs.add_candidate_options(parser)
    args = parser.parse_args(argv)
    output = args.output or args.run / "model.tflite"
    export = partial(
        serving.export_tflite,
        float16=args.float16,
        batch_size=args.batch_size,
        candidates=args.candidates,
        compare_at=args.compare_at,
    )
    return serving.export_run(export, args.run, output)


if __name__ == "__main__":
    sys.exit(main())
