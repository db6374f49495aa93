"""A keras-tuner search over sigma by normalised held-out log-likelihood; needs keras-tuner."""

from tfdde.tuning.hypermodel import Densities
from tfdde.tuning.tuner import OBJECTIVE, LikelihoodTuner

__all__ = ["OBJECTIVE", "Densities", "LikelihoodTuner"]
