"""The earlier name of ``tfdde.networks.initial_weights``."""

from tfdde.networks.initial_weights import (
    along_covariance,
    at_independent_components,
    at_principal_components,
)

__all__ = ["along_covariance", "at_independent_components", "at_principal_components"]
