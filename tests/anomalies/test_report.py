"""The page on strange rows, against a Gaussian and planted anomalies."""

import re

import numpy as np

from tfdde.anomalies.report import strange_rows


def log_density(x):
    """Two columns of correlation 0.9, and one of its own."""
    a, b, c = np.asarray(x, float).T
    return -0.5 * (a**2 - 1.8 * a * b + b**2) / 0.19 - 0.5 * c**2


def rows(count, seed):
    rng = np.random.default_rng(seed)
    a, noise, c = rng.standard_normal((3, count))
    return np.column_stack([a, 0.9 * a + 0.19**0.5 * noise, c])


def test_planted_rows_come_first_with_their_columns():
    test = rows(100, 0)
    test[7] = [0.0, 0.0, 9.0]
    test[3] = [0.0, 3.0, 0.0]
    text = strange_rows(log_density, test, rows(999, 1), rows(2_000, 2), ["a", "b", "c"])
    lines = text.splitlines()
    first, second = [line for line in lines if re.match(r"\| \d", line)][:2]
    assert first.startswith("| 7 | -40.5 | `c` = 9 (usual: ") and "; 40.5 nats)" in first
    assert second.startswith("| 3 |")
    # Each of the two correlated columns could be at fault: to 0 from 3, or to 0.9 * 3 from 0.
    assert re.findall(r"`(\w)`", second)[:2] in (["a", "b"], ["b", "a"])
    assert "5 % of normal rows are expected" in text and "of 100 test rows do" in text


def test_few_rows_that_are_all_usual():
    text = strange_rows(log_density, np.zeros((4, 3)), rows(9, 0), rows(50, 1), ["a", "b", "c"])
    assert "10 % of normal rows" in text and "0 of 4 test rows do" in text
    assert "| test row |" not in text
