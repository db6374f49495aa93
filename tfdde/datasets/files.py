"""The earlier name of ``tfdde.datasets.file_batches``, kept for programs that import it."""

from tfdde.datasets.file_batches import stream_files

__all__ = ["stream_files"]
