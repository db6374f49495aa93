"""Denoising density estimators in TensorFlow/Keras: a log-density and a sampler from data."""

from tfdde import (
    anomalies,
    convnets,
    datasets,
    losses,
    metrics,
    networks,
    optimizers,
    recipes,
    starts,
    tables,
    tuning,
)
from tfdde._version import __version__
from tfdde.models.dde import DDE
from tfdde.models.fit_callbacks import DivergedError
from tfdde.models.generator import Generator
from tfdde.models.normalized_density import UnnormalizedWarning
from tfdde.models.sampling import sample_rows
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.noise import Constant, Decay, LogUniform
from tfdde.partition.result import LogPartition, LogPartitions
from tfdde.runs.checkpoint import Checkpoint

__all__ = [
    "DDE",
    "Checkpoint",
    "Constant",
    "Decay",
    "DivergedError",
    "GaussianBase",
    "Generator",
    "LogPartition",
    "LogPartitions",
    "LogUniform",
    "UnnormalizedWarning",
    "__version__",
    "anomalies",
    "convnets",
    "datasets",
    "losses",
    "metrics",
    "networks",
    "optimizers",
    "recipes",
    "sample_rows",
    "starts",
    "tables",
    "tuning",
]
