"""Anomaly detectors to compare with, for ``anomalies.py``.

Each is a function (training rows, rows to score, seed) -> scores, the higher, the stranger. Rows
are standardised. PyOD's detectors have its default settings. If the rows to score are the training
rows, no row is its own neighbour.
"""

import numpy as np


def _pyod(module, name, **settings):
    def detect(train, rows, seed):
        import importlib

        detector = getattr(importlib.import_module(f"pyod.models.{module}"), name)
        seeded = {"random_state": seed} if name == "IForest" else {}
        fitted = detector(**settings, **seeded).fit(train)
        return fitted.decision_scores_ if rows is train else fitted.decision_function(rows)

    return detect


def diffusion_time(train, rows, seed):
    """Non-parametric estimate of diffusion time (DTE-NP, Livernoche et al., arXiv 2305.18593).

    The time is the variance of the noise that would have moved a training row here: the mean
    squared distance to the five nearest ones, by column.
    """
    from sklearn.neighbors import NearestNeighbors

    del seed
    neighbors = NearestNeighbors(n_neighbors=min(5, len(train) - 1)).fit(train)
    distances = neighbors.kneighbors(None if rows is train else rows)[0]
    return np.square(distances).mean(axis=1) / train.shape[1]


PEERS = {
    "KNN": _pyod("knn", "KNN"),
    "LOF": _pyod("lof", "LOF"),
    "ECOD": _pyod("ecod", "ECOD"),
    "IForest": _pyod("iforest", "IForest"),
    "OCSVM": _pyod("ocsvm", "OCSVM"),
    "DTE-NP": diffusion_time,
}
