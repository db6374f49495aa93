"""Score the rows of a file of any size by a trained density.

    python export/score.py runs/sales/savedmodel --input big.parquet --output scores.parquet
    python export/score.py runs/sales --input 'parts/*.csv' --output scores.csv \
        --columns price weight --keep id --anomaly-score
    cat table.csv | python export/score.py runs/sales --input - --output - > scores.csv

After Ctrl-C, a kill or a crash the same command goes on; see docs/scoring.md.
"""

import argparse
import contextlib
import sys
from typing import Any

from tfdde import runs

REJECTED = 3


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write the log-density of each row of a CSV, Parquet or TFRecord file, or of "
        "several, in constant memory. Bad rows go to OUTPUT.rejects.csv.",
        epilog="Exit code: 0; 2 if an argument or a file is wrong; 3 if rows were rejected, "
        "though all others are scored; 130 after Ctrl-C. Interrupted, the same command goes on.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="SavedModel, folder of its versions, or run folder")
    add(
        "--input", metavar="FILE", required=True, help="file, folder or quoted pattern; - reads CSV"
    )
    add(
        "--output",
        metavar="FILE",
        required=True,
        help=".csv, .parquet or .tfrecord; - writes CSV",
    )
    add(
        "--columns",
        nargs="+",
        metavar="NAME",
        help="columns of a row, in the model's order [as in training, else all but those below]",
    )
    add("--conditions", nargs="+", metavar="NAME", help="columns of its condition [none]")
    add("--keep", nargs="+", metavar="NAME", default=[], help="columns to pass on [none]")
    add("--anomaly-score", action="store_true", help="add anomaly_score, the negative log-density")
    text = "add alarm, whether the log-density is below that of this share of normal rows"
    add("--threshold", type=float, metavar="RATE", help=text)
    add(
        "--explain",
        nargs="?",
        const="first",
        choices=["first", "all"],
        help="add the column that explains most, or all columns; only of alarms with --threshold",
    )
    add("--drift", action="store_true", help="print whether the rows differ from normal ones")
    text = "table of normal rows that were not trained on, for these three [those that MODEL keeps]"
    add("--normal", metavar="FILE", help=text)
    add("--batch-size", type=runs.positive_int, help="rows of a call of the model [up to 8192]")
    add("--delimiter", metavar="CHAR", help="between the cells of CSV [as in the first line]")
    add("--decimal", metavar="CHAR", default=".", help="decimal point in CSV, . or , [.]")
    add("--encoding", metavar="NAME", default="utf-8", help="encoding of CSV [utf-8]")
    args = parser.parse_args(argv)
    wants_normal = args.threshold is not None or args.explain
    if args.drift and args.input == "-":
        parser.error("--drift needs a file, which is read twice, not standard input")
    if args.normal and not (wants_normal or args.drift):
        parser.error("--normal needs --threshold, --explain or --drift")
    if args.output != "-":  # scores are written as they are, or not at all
        runs.print_any_character()
    try:
        from tfdde import scoring

        dialect: dict[str, Any] = {
            "delimiter": "\t" if args.delimiter == "\\t" else args.delimiter,
            "decimal": args.decimal,
            "encoding": args.encoding,
        }
        changed = None
        if args.drift:  # refused before the scores are made, if it is
            with contextlib.redirect_stdout(sys.stderr if args.output == "-" else sys.stdout):
                changed = scoring.file_drift(
                    args.model, args.input, args.columns, args.keep, args.normal, **dialect
                )
        piped = "-" in (str(args.input), str(args.output))
        rejected = (scoring.score_pipe if piped else scoring.score_file)(
            args.model,
            args.input,
            args.output,
            columns=args.columns,
            conditions=args.conditions,
            keep=args.keep,
            batch_rows=args.batch_size,
            anomaly_score=args.anomaly_score,
            threshold=args.threshold,
            explain=args.explain,
            normal=args.normal if wants_normal else None,
            **dialect,
        )
        if changed:
            print(changed, file=sys.stderr if args.output == "-" else sys.stdout)
    except KeyboardInterrupt:
        print("\nTo continue, run the same command again.", file=sys.stderr)
        return runs.INTERRUPTED
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rejected:
        where = "above" if str(args.output) == "-" else f"{args.output}.rejects.csv"
        print(f"{rejected} rows were rejected: see {where}", file=sys.stderr)
        return REJECTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
