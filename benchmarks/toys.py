"""KL of a toy's density to the exact one, and shares of the modes in a generator's samples.

    python benchmarks/toys.py density --dataset checkerboard --sigma 0.2
    python benchmarks/toys.py generator --dataset eight_gaussians --sigma 0.1
    python benchmarks/toys.py generator --dataset rings --sigma 0.2 --preset paper --sigma-max 0.2
    python benchmarks/toys.py table

Trains by train/toy.py (further arguments go there) in a process of its own, whose seconds are
counted, of the clock and of the processor, and adds a row to results/toys.json; `table` prints the
rows of generators, as Markdown. With `--candidates K` a second row is of samples that were each
chosen from K, at the noise level --compare-at.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import record

from tfdde import datasets, metrics

SCRIPT = Path(__file__).parent.parent / "train" / "toy.py"
SAMPLES, REPEATS = 20_000, 20


def density_row(model, name, sigma):
    """Return KL(exact || normalised model) on two grids, whose difference is the grid's error."""
    values = {}
    for side in (300, 400):
        grid, cell = metrics.grid(-5 - 5 * sigma, 5 + 5 * sigma, side)
        exact = datasets.toy_log_density(name, grid, sigma)
        values[side] = metrics.grid_kl(
            exact, model.log_density(grid, normalized=False).numpy(), cell
        )
    return {"kl_nats": values[400], "kl_nats_on_a_coarser_grid": values[300]}


def distances(x, others):
    """Return sliced Wasserstein and squared kernel distances (bandwidth 0.5) to other samples."""
    pairs = [
        (
            metrics.sliced_wasserstein(x, y, repeats=2).value,
            metrics.kernel_distance(x, y, bandwidth=0.5).value,
        )
        for y in others
    ]
    return np.array(pairs)


def generator_row(model, name, candidates=1, sigma=None):
    """Return distances to the truth, and shares in percent with binomial standard errors."""
    x = model.sample_from_candidates(SAMPLES, candidates, seed=1, sigma=sigma).numpy()
    truth = datasets.sample_toy(name, SAMPLES, seed=2)
    others = [datasets.sample_toy(name, SAMPLES, seed=3 + k) for k in range(REPEATS)]
    row = {"samples": SAMPLES}
    # Distances between samples of the truth, in pairs without a common sample.
    chance = np.concatenate(
        [distances(a, [b]) for a, b in zip(others[::2], others[1::2], strict=True)]
    )
    for k, measure in enumerate(("sliced_wasserstein", "kernel_distance")):
        column = distances(x, others)[:, k]
        row[measure] = [column.mean(), column.std(ddof=1)]
        row[f"true_{measure}"] = [chance[:, k].mean(), chance[:, k].std(ddof=1)]
    if name == "checkerboard":
        share = datasets.inside_checkerboard(x).mean()
        row["inside_percent"] = 100 * share
        row["inside_standard_error"] = 100 * np.sqrt(share * (1 - share) / SAMPLES)
    if name not in ("two_spirals", "rings"):
        # Squares are counted around their middles, Gaussians within 4 standard deviations.
        radius = np.sqrt(2) if name == "checkerboard" else 4 * datasets.toy_std(name)
        for title, points in (("generated", x), ("true", truth)):
            shares, errors = metrics.mode_shares(points, datasets.toy_modes(name), radius)
            row[f"{title}_mode_percent"] = np.round(100 * shares, 2).tolist()
            row[f"{title}_mode_standard_error"] = np.round(100 * errors, 2).tolist()
    return row


def table(rows):
    """Return a Markdown table of distances to the truth, and of those between true samples."""
    lines = [
        "| | sliced Wasserstein | kernel | inside, % | shares, % | minutes |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        if "sliced_wasserstein" not in row:
            continue
        cells = [
            f"{row[m][0]:.{n}f} ± {row[m][1]:.{n}f} ({row['true_' + m][0]:.{n}f} ± "
            f"{row['true_' + m][1]:.{n}f})"
            for m, n in (("sliced_wasserstein", 3), ("kernel_distance", 5))
        ]
        inside = "inside_percent" in row
        cells.append(f"{row['inside_percent']:.1f}" if inside else "")
        shares = row.get("generated_mode_percent")
        cells.append(f"{min(shares):.1f} – {max(shares):.1f}" if shares else "")
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['seconds'] / 60:.0f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("density", "generator", "table"))
    parser.add_argument("--dataset", choices=datasets.TOYS)
    parser.add_argument("--sigma", type=float)
    parser.add_argument("--output", help="keep the run in this folder")
    parser.add_argument("--candidates", type=int, default=1, help="of a second row's samples")
    parser.add_argument("--compare-at", type=float, help="noise level that they are compared at")
    args, more = parser.parse_known_args()
    if args.what == "table":
        print(table(json.loads((record.RESULTS / "toys.json").read_text())))
        return 0
    if args.dataset is None or args.sigma is None:
        parser.error("--dataset and --sigma are required")
    if args.what == "density" and args.candidates > 1:
        parser.error("--candidates are of a generator")
    only = ["--generator-steps", "0", "--sigma-max", str(args.sigma)]  # one level, as in the paper
    if args.what == "generator":
        only = [] if "--preset" in more else ["--preset", "quick"]
    options = ["--dataset", args.dataset, "--sigma", str(args.sigma), *only, *more]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.output or scratch + "/run"
        start = time.time()
        command = [sys.executable, SCRIPT, *options, "--output", folder]
        if code := subprocess.run(command).returncode:
            return code
        seconds = round(time.time() - start)
        used = round(record.children_time())
        model = keras.saving.load_model(f"{folder}/{args.what}.keras", compile=False)
    name = " ".join([f"{args.what}, {args.dataset}, sigma {args.sigma:g}", *more])
    training = {"training": options, "seconds": seconds, "cpu_seconds": used}
    if args.what == "density":
        rows = {name: density_row(model, args.dataset, args.sigma)}
    else:
        rows = {name: generator_row(model, args.dataset)}
    if args.what == "generator" and args.candidates > 1:
        where = f" at {args.compare_at:g}" if args.compare_at else ""
        chosen = generator_row(model, args.dataset, args.candidates, args.compare_at)
        rows[f"{name}, {args.candidates} candidates{where}"] = chosen
    for title, row in rows.items():
        record.add("toys", {"name": title, **row, **training})
    return 0


if __name__ == "__main__":
    sys.exit(main())
