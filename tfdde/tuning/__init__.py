"""Choice of the noise level by held-out likelihood; in the paper it is set by hand.

``select_sigma`` reads one density of many levels at each of them. ``tfdde.tuning.search``, which
needs keras-tuner and is imported by its own name, trains a density for each trial.
"""

from tfdde.tuning.curve import (
    OverfittingWarning,
    SigmaCurve,
    ladder_starts,
    overfitting,
    select_sigma,
    split,
)

__all__ = [
    "OverfittingWarning",
    "SigmaCurve",
    "ladder_starts",
    "overfitting",
    "select_sigma",
    "split",
]
