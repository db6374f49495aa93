"""Directions along which data are independent."""

from __future__ import annotations

import warnings

import numpy as np

ROWS_PER_COLUMN = 5  # at least, for the rows to have independent components worth the name


def independent_components(x: np.ndarray, seed: int) -> np.ndarray:
    """Find independent components by FastICA (Hyvärinen 1999), which takes about a second.

    Args:
        x: rows, shape (rows, n), more than n of them, with a covariance of full rank.
        seed: of the initial weights.

    Returns:
        Directions onto which the centred rows are projected, shape (n, n), one in each row, so that
        the projections are uncorrelated and have unit variance.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning
    except ImportError:
        raise ImportError(
            "Independent components need scikit-learn: pip install tfdde[tables]."
        ) from None
    ica = FastICA(whiten="unit-variance", max_iter=200, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        # An approximate solution is good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica.fit(x)
    return ica.components_
