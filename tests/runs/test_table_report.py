"""The report on a table's density, against exact Gaussians."""

import keras
import numpy as np
import pytest
from gaussians import gaussian_dde

import tfdde
from tfdde.runs.table_report import write_report


def correlated(count, n, seed=0):
    """Rows whose columns 1 and 4 nearly determine each other, in units of thousands."""
    x = np.random.default_rng(seed).standard_normal((count, n))
    x[:, 4] = 0.99 * x[:, 1] + 0.14 * x[:, 4]
    return (1_000 * x + 50_000).astype(np.float32)


@pytest.fixture(scope="module")
def density():
    rows = correlated(3_000, 14)
    layer = keras.layers.Normalization()
    layer.adapt(rows)
    return gaussian_dde(rows, normalization=layer)


def test_samples_are_those_of_the_density_in_units_of_the_table(density):
    rows = correlated(3_000, 14)
    samples = tfdde.sample_rows(density, rows, 2_000, seed=1)
    np.testing.assert_allclose(samples.mean(axis=0), rows.mean(axis=0), atol=120)
    blur = (1 + density.noise.sigma**2) ** 0.5
    np.testing.assert_allclose(samples.std(axis=0), blur * rows.std(axis=0), rtol=0.08)
    # The blur takes some of the correlation.
    expected = np.corrcoef(rows.T)[1, 4] / blur**2
    assert np.corrcoef(samples.T)[1, 4] == pytest.approx(expected, abs=0.01)
    np.testing.assert_array_equal(samples, tfdde.sample_rows(density, rows, 2_000, seed=1))


def test_report_says_which_columns_are_shown(density, tmp_path):
    parts = correlated(1_000, 14), correlated(300, 14, 1), correlated(300, 14, 2)
    parts[2][:, 7] += 600
    parts[2][5, 1] += 3_000  # which column 4 does not confirm
    names = [f"column {j}" for j in range(14)]
    write_report(tmp_path, density, parts, names, "Two\nparagraphs.", ["A note."])
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "Two\n\nparagraphs." in text and "- A note." in text
    assert "Of 14 columns the first 12 have a marginal." in text
    pairs = text.partition("In pairs: ")[2].partition("\n")[0]
    assert "`column 1`" in pairs and "`column 4`" in pairs and pairs.count("`") == 8
    first = next(line for line in text.splitlines() if line.startswith("| 5 | "))
    assert "`column 1`" in first and "`column 4`" in first
    assert "300 test rows were compared with 1000 training rows: there is a change" in text
    assert text.partition("there is a change")[2].partition("of `")[2].startswith("column 7`")
    assert {p.name for p in tmp_path.glob("*.png")} == {"marginals.png", "pairs.png", "scores.png"}


def test_parts_without_a_whole_row_have_no_pictures(density, tmp_path):
    parts = correlated(9, 14), correlated(0, 14), correlated(9, 14)
    write_report(tmp_path, density, parts, [*"abcdefghijklmn"], "Text.")
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "Every row of one part misses a value" in text and not list(tmp_path.glob("*.png"))
