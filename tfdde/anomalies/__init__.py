"""Anomalies in tables: scores, what makes a row strange, thresholds, and change over time."""

from tfdde.anomalies.change import Drift, drift
from tfdde.anomalies.explanation import Explanation, explain
from tfdde.anomalies.scores import METHODS, AnomalyScores, RowsDensity
from tfdde.anomalies.threshold import Threshold, threshold

__all__ = [
    "METHODS",
    "AnomalyScores",
    "Drift",
    "Explanation",
    "RowsDensity",
    "Threshold",
    "drift",
    "explain",
    "threshold",
]
