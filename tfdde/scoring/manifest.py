"""Manifests: which input, model and options a file of scores was made from.

They keep the parts of one call from being completed by another, and tell which files tfdde wrote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfdde.utils.files import read_object, write_json

# Entries that are absent if an option has its default, or the model has no medians.
OPTIONAL = ("dialect", "medians", "threshold", "explain", "normal")
HEAD = 2**20  # bytes at the start of a big file that are compared


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def identity(file: Path) -> dict[str, Any]:
    """Return what tells a file from others and from its later versions, by a look at its start."""
    status = file.stat()
    with file.open("rb") as f:
        head = hashlib.sha256(f.read(HEAD)).hexdigest()
    return {
        "name": file.name,
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        "head": head,
    }


def write(path: Path, about: dict[str, Any]) -> None:
    """Write a manifest."""
    write_json(path, about, indent=1)


def difference(path: Path, about: dict[str, Any]) -> str | None:
    """Return the first difference between a manifest and ``about`` in words, or None."""
    old = read_object(path)
    for name in {**about, **{name: None for name in OPTIONAL if name in old}}:
        value = about.get(name)
        if old.get(name) != value:
            values = (
                f" ({old.get(name)!r}, not {value!r})"
                if name not in ("input", "model", "normal")
                else ""
            )
            return f"another {name}{values}"
    return None


def finish(path: Path, about: dict[str, Any], made: Sequence[Path], rejected: int) -> None:
    """Write the manifest of a finished call.

    Args:
        path: where to.
        about: input, model and options.
        made: the files that the call wrote; those that don't exist are left out.
        rejected: how many rows were rejected.
    """
    files = [identity(file) for file in made if file.exists()]
    write(path, {**about, "output": files, "rejected": rejected})


def is_finished(path: Path) -> bool:
    """Return whether a file is the manifest of a finished call."""
    try:
        old = read_object(path)
    except ValueError:
        return False
    return isinstance(old.get("rejected"), int) and isinstance(old.get("output"), list)


def unchanged(path: Path, made: Sequence[Path]) -> dict[str, Any] | None:
    """Return the manifest of a finished call if the files that it made are as it left them."""
    if not path.exists() or not made[0].exists():
        return None
    old = read_object(path)
    files = [identity(file) for file in made if file.exists()]
    return old if is_finished(path) and old["output"] == files else None


def wrote(path: Path, file: Path) -> bool:
    """Return whether ``file`` is as the finished call of a manifest left it."""
    return path.exists() and is_finished(path) and identity(file) in read_object(path)["output"]
