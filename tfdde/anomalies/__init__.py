"""Anomalies in tables: scores of how strange rows are."""

from tfdde.anomalies.scores import METHODS, AnomalyScores, RowsDensity

__all__ = ["METHODS", "AnomalyScores", "RowsDensity"]
