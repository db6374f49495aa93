"""Thresholds: coverage and rate over many calibrations of scores whose distribution is known."""

import numpy as np
import pytest

from tfdde.anomalies import threshold


@pytest.mark.parametrize("rows, rate", [(60, 0.1), (400, 0.01), (99, 0.5)])
def test_rate_and_its_interval(rows, rate):
    """Scores are exponential, so the true rate above a threshold t is e**-t."""
    scores = np.random.default_rng(rows).exponential(size=(4_000, rows))
    found = [threshold(s, rate, confidence=0.9) for s in scores]
    true = np.exp([-f.value for f in found])
    assert found[0].rate <= rate
    deviation = true.std() / np.sqrt(len(true))
    assert true.mean() == pytest.approx(found[0].rate, abs=4 * deviation)
    covered = np.mean([f.low <= t <= f.high for f, t in zip(found, true, strict=True)])
    assert covered == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 4_000))


def test_ties_make_fewer_alarms():
    scores = np.random.default_rng(0).integers(0, 4, 500)
    found = threshold(scores, 0.3)
    assert (scores > found.value).mean() <= 0.3


def test_few_rows_suffice_exactly_where_they_can():
    assert threshold(np.arange(19.0), 0.05).value == 18.0
    with pytest.raises(ValueError, match="must be of 19 rows or more for a rate of 0.05, got 18"):
        threshold(np.arange(18.0), 0.05)


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"`rate` must be in \(0, 1\), got 1.5"):
        threshold([1.0, 2.0], 1.5)
    with pytest.raises(ValueError, match=r"`confidence` must be in \(0, 1\), got 0"):
        threshold([1.0, 2.0], 0.5, confidence=0)
    with pytest.raises(ValueError, match="without NaN"):
        threshold([1.0, np.nan], 0.5)
