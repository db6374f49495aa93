"""Tables as people have them: names, units, gaps and ties of columns, learned once and kept."""

from tfdde.tables.columns import Column
from tfdde.tables.schema import Schema

__all__ = ["Column", "Schema"]
