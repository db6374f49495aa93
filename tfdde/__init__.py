"""Denoising density estimators in TensorFlow/Keras: a log-density and a sampler from data."""

from tfdde import convnets, datasets, losses, metrics, networks, recipes, starts, tuning
from tfdde.base import GaussianBase
from tfdde.callbacks import Checkpoint, DivergedError
from tfdde.conditions import LogPartitions
from tfdde.density import DDE
from tfdde.estimate import LogPartition
from tfdde.generator import Generator
from tfdde.noise import Constant, Decay, LogUniform
from tfdde.readout import UnnormalizedWarning

__version__ = "0.1.0"

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
    "convnets",
    "datasets",
    "losses",
    "metrics",
    "networks",
    "recipes",
    "starts",
    "tuning",
]
