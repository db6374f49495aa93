"""The earlier name of ``tfdde.networks.convolutional``."""

from tfdde.networks.convolutional import conv_density, conv_generator

__all__ = ["conv_density", "conv_generator"]
