"""Anomalies in tables: scores, what makes a row strange, thresholds, and change over time."""

from tfdde.anomalies.change import Drift, drift
from tfdde.anomalies.explanation import Explanation, Range, explain, ranges
from tfdde.anomalies.normal_rows import NormalRows
from tfdde.anomalies.scores import METHODS, AnomalyScores, RowsDensity
from tfdde.anomalies.threshold import Threshold, threshold

__all__ = [
    "METHODS",
    "AnomalyScores",
    "Drift",
    "Explanation",
    "NormalRows",
    "Range",
    "RowsDensity",
    "Threshold",
    "drift",
    "explain",
    "ranges",
    "threshold",
]
