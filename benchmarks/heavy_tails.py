"""Held-out log-likelihood of columns with heavy tails: as they are, and with their asinh.

    python benchmarks/heavy_tails.py

Each table has 5,000 rows to learn from and 5,000 to test. A ``DDEstimator`` (64 units, 2 layers,
1,500 steps, sigma = 0.1) learns it twice, with ``tails="keep"`` and as by default; of the rows it
blurs the former in their own units and the latter in those of the asinh. The truth is the mean of
the exact log-density, which no density can exceed but by chance. Numbers are means over the seeds
with their standard errors. Adds a row for each table to results/heavy_tails.json.
"""

import argparse
import warnings

import numpy as np
import record
from scipy import stats

from tfdde.sklearn import DDEstimator
from tfdde.utils.statistics import mean_and_error

ROWS = 5_000
SETTINGS = {"sigma": 0.1, "width": 64, "depth": 2, "steps": 1_500}
TABLES = {  # by name: the distribution of each column, all columns independent
    "Cauchy, 2 columns": [stats.cauchy(), stats.cauchy(3.0, 10.0)],
    "log-normal incomes": [stats.lognorm(1.0, scale=30_000.0)],
    "log-normal incomes, sigma = 2": [stats.lognorm(2.0, scale=30_000.0)],
    "Student t, 2 degrees": [stats.t(2)],
    "Gaussian": [stats.norm(5.0, 2.0)],
}


def compare(columns, seed):
    """Mean log-likelihood of test rows: as the columns are, with asinh, and the truth."""
    rng = np.random.default_rng(seed)
    x = np.stack([column.rvs(2 * ROWS, random_state=rng) for column in columns], axis=1)
    means, trusted = [], True
    for tails in ("keep", None):
        estimator = DDEstimator(tails=tails, random_state=seed, **SETTINGS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(x[:ROWS])
        values = estimator.dde_.log_density(estimator.schema_.rows(x[ROWS:]), normalized=False)
        # Also an estimate that is not trusted is taken, and said.
        means.append(float(np.mean(values, dtype=np.float64)) - estimator.log_partition_.value)
        print(tails, means[-1], estimator.log_partition_, *estimator.schema_.notices, flush=True)
        trusted &= estimator.log_partition_.trusted
    exact = sum(column.logpdf(values) for column, values in zip(columns, x[ROWS:].T, strict=True))
    return *means, float(exact.mean()), trusted, int(estimator.schema_.tailed.sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for name in args.tables:
        kept, changed, exact, trusted, tailed = zip(
            *(compare(TABLES[name], seed) for seed in args.seeds), strict=True
        )
        row = {"seeds": args.seeds, "columns_with_asinh": tailed, "log_z_trusted": trusted}
        values = {"keep": kept, "default": changed, "truth": exact}
        values["gain"] = np.subtract(changed, kept)
        for what, each in values.items():
            row[what], row[f"{what}_standard_error"] = mean_and_error(np.array(each))
        record.add("heavy_tails", {"name": name, **row})


if __name__ == "__main__":
    main()
