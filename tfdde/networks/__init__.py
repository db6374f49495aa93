"""Networks for densities and generators, their layers, and initial weights."""

from tfdde.networks.check_network import (
    check_network,
    check_scalar,
    check_trainable,
    condition_width,
)
from tfdde.networks.convolutional import conv_density, conv_generator
from tfdde.networks.dense import dense_block, residual_mlp
from tfdde.networks.fixed_condition import FixedCondition
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.networks.layers import Concat, ProductOfMixtures, ResidualSum, softplus
from tfdde.networks.tree_base import TreeBase

__all__ = [
    "Concat",
    "FixedCondition",
    "GaussianBase",
    "ProductOfMixtures",
    "ResidualSum",
    "TreeBase",
    "check_network",
    "check_scalar",
    "check_trainable",
    "condition_width",
    "conv_density",
    "conv_generator",
    "dense_block",
    "residual_mlp",
    "softplus",
]
