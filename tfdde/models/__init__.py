"""The two models that users train: the density ``DDE`` and the sampler ``Generator``."""

from tfdde.models.dde import DDE
from tfdde.models.fit_callbacks import DivergedError
from tfdde.models.generator import Generator
from tfdde.models.normalized_density import UnnormalizedWarning
from tfdde.models.sampling import sample_rows

__all__ = ["DDE", "DivergedError", "Generator", "UnnormalizedWarning", "sample_rows"]
