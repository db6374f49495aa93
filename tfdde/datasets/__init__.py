"""Data: 2-D toys with exact densities, images, and resumable batches."""

from tfdde.datasets.images import ImageData, load_fashion_mnist, load_mnist
from tfdde.datasets.stream import epoch_batches, stream
from tfdde.datasets.toys import (
    TOYS,
    inside_checkerboard,
    sample_toy,
    toy_log_density,
    toy_modes,
)

__all__ = [
    "TOYS",
    "ImageData",
    "epoch_batches",
    "inside_checkerboard",
    "load_fashion_mnist",
    "load_mnist",
    "sample_toy",
    "stream",
    "toy_log_density",
    "toy_modes",
]
