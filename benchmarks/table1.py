"""Table 1 of the paper, POWER, GAS, HEPMASS and MINIBOONE, with an honest log Z.

    python benchmarks/table1.py --data-dir DIR --seconds-per-set 600

Trains on the files that DIR holds (see ``tfdde.datasets.load_uci``) and says which are missing.
Held-out log-likelihood in nats per clean test row, with its standard error over the rows and
that of log Z in quadrature; the noise level was chosen on validation rows.  Adds rows to
results/table1.json and writes results/table1.md, beside published numbers.
"""

import argparse
import json
import sys

from likelihoods import measure

SETS = ("power", "gas", "hepmass", "miniboone")
# Papamakarios et al. 2017 (errors: two standard deviations), Durkan et al. 2019, and the paper's
# row, which is no target of this project: see published_log_z.py for the estimation of its log Z.
PUBLISHED = {
    "MAF (10), Papamakarios et al. 2017": ("0.24", "10.08", "-17.73", "-12.24"),
    "MAF MoG (5), Papamakarios et al. 2017": ("0.30", "9.59", "-17.39", "-11.68"),
    "RQ-NSF (AR), Durkan et al. 2019": ("0.66", "13.09", "-14.01", "-9.22"),
    "DDE, Bigdeli et al. 2020": ("0.97", "9.73", "-11.3", "-6.94"),
}


def markdown(rows):
    """Return the table of the rows of results/table1.json."""
    lines = ["| | " + " | ".join(name.upper() for name in SETS) + " |", "|---" * 5 + "|"]
    for title, numbers in PUBLISHED.items():
        lines.append(f"| {title} | " + " | ".join(numbers) + " |")
    for method in dict.fromkeys(row["name"].split(", ")[1] for row in rows):
        have = {r["name"].split(", ")[0]: r for r in rows if r["name"].endswith(f", {method}")}
        cells = [
            f"{have[s]['log_likelihood']:.2f} ± {have[s]['standard_error']:.2f}"
            + ("" if have[s]["facts"].get("log_z_trusted", True) else " (log Z not trusted)")
            if s in have
            else ""
            for s in SETS
        ]
        lines.append(f"| {method}, here | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def load(data_dir, check_sizes):
    """Yield the sets whose files are there, and print what is wrong with the other sets."""
    from tfdde import datasets

    for name in SETS:
        try:
            yield name, datasets.load_uci(name, data_dir, check_sizes=check_sizes)
        except (FileNotFoundError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", help="folder with the original files")
    parser.add_argument("--seconds-per-set", type=float, default=600.0)
    parser.add_argument("--methods", nargs="+", default=["tfdde"], help="as in likelihoods.py")
    parser.add_argument(
        "--any-size", action="store_true", help="take files of other than the published sizes"
    )
    args = parser.parse_args()
    import record

    measured = False
    for name, table in load(args.data_dir, not args.any_size):
        measured = True
        for method in args.methods:
            parts = table.x_train, table.x_validation, table.x_test
            row = measure(method, *parts, args.seconds_per_set)
            record.add("table1", {"name": f"{name}, {method}", **row})
    if not measured:
        print("error: there is none of the four data sets", file=sys.stderr)
        return 2
    rows = json.loads((record.RESULTS / "table1.json").read_text())
    text = markdown(rows)
    (record.RESULTS / "table1.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
