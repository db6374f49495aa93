"""Data sets and batches: 2-D toys with exact densities, images, tables, files of any size."""

from tfdde.datasets.batches import epoch_batches, stream
from tfdde.datasets.images import (
    ImageData,
    load_digits,
    load_fashion_mnist,
    load_mnist,
    load_mnist_components,
    load_stacked_mnist,
)
from tfdde.datasets.sources import learn_table, load_table
from tfdde.datasets.tables import Table, load_builtin, read_columns, read_table, split_rows
from tfdde.datasets.toys import (
    TOYS,
    inside_checkerboard,
    sample_toy,
    toy_log_density,
    toy_modes,
    toy_scale,
    toy_std,
)
from tfdde.datasets.uci import UCI, load_uci

__all__ = [
    "TOYS",
    "UCI",
    "ImageData",
    "Table",
    "epoch_batches",
    "inside_checkerboard",
    "learn_table",
    "load_builtin",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "load_mnist_components",
    "load_stacked_mnist",
    "load_table",
    "load_uci",
    "read_columns",
    "read_table",
    "sample_toy",
    "split_rows",
    "stream",
    "toy_log_density",
    "toy_modes",
    "toy_scale",
    "toy_std",
]
