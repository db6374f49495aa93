"""What a search was started with, kept in its folder, so that no other search continues it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfdde.utils.files import read_object, write_json


def checksum(rows: np.ndarray | None) -> str | None:
    """Return the shape and the CRC-32 of rows as text; None for None."""
    if rows is None:
        return None
    shape = " x ".join(map(str, rows.shape))
    return f"{shape}, crc32 {zlib.crc32(np.ascontiguousarray(rows).tobytes()):08x}"


def read(path: Path) -> dict[str, Any]:
    """Return the facts in a file that ``check`` wrote, none if there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    return read_object(path) if path.exists() else {}


def check(path: Path, facts: Mapping[str, Any], keep: bool = False) -> None:
    """Refuse to continue a search that was started with other facts.

    Args:
        path: file of the facts.
        facts: settings and checksums by name, as JSON can hold them.
        keep: write those of the facts to the file that it does not hold yet.

    Raises:
        ValueError: a fact of the same name in the file differs, or the file is damaged.
    """
    known = read(path)
    # NumPy's numbers become Python's, and tuples lists, as they are in the file.
    now = json.loads(json.dumps(dict(facts), default=lambda value: np.asarray(value).tolist()))
    for name in sorted(known.keys() & now.keys()):
        if known[name] != now[name]:
            raise ValueError(
                f"The search in {path.parent} was started with {name} = {known[name]!r}, not "
                f"{now[name]!r}: continue it with the same, choose another `directory`, or pass "
                "overwrite=True to start anew."
            )
    if keep and now.keys() - known.keys():
        write_json(path, known | now)
