"""What a file of scores is made of, so that it is neither completed nor taken for another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfdde.utils.files import atomic, read_object

HEAD = 2**20  # bytes of a file whose checksum counts, where the whole may be too big


def checksum(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def identity(file: Path) -> dict[str, Any]:
    """What tells a big file from others and from its own later versions, cheaply."""
    about = file.stat()
    with file.open("rb") as f:
        head = hashlib.sha256(f.read(HEAD)).hexdigest()
    return {"name": file.name, "bytes": about.st_size, "modified": about.st_mtime_ns, "head": head}


def write(path: Path, about: dict[str, Any]) -> None:
    """Write a manifest."""
    with atomic(path) as beside:
        beside.write_text(json.dumps(about, indent=1) + "\n")


def difference(path: Path, about: dict[str, Any]) -> str | None:
    """What of ``about`` the manifest has otherwise, in words; None if it is all the same."""
    old = read_object(path)
    for name, value in about.items():
        if old.get(name) != value:
            was = f" ({old.get(name)!r}, not {value!r})" if name not in ("input", "model") else ""
            return f"another {name}{was}"
    return None


def finish(path: Path, about: dict[str, Any], made: Sequence[Path], rejected: int) -> None:
    """Write beside the files ``made`` what they are made of, and how many rows were rejected."""
    files = [identity(file) for file in made if file.exists()]
    write(path, {**about, "output": files, "rejected": rejected})


def check_finished(path: Path, about: dict[str, Any], made: Sequence[Path]) -> int:
    """How many rows were rejected; FileExistsError if the files are of something else."""
    output = f"{made[0]} exists already"
    if not path.exists():
        raise FileExistsError(f"{output}: remove it, or choose another output.")
    old = read_object(path)
    files = [identity(file) for file in made if file.exists()]
    if old.get("output") != files or not isinstance(old.get("rejected"), int):
        why = "was changed since it was written"
    elif other := difference(path, about):
        why = f"has the scores for {other}"
    else:
        return old["rejected"]
    raise FileExistsError(f"{output} and {why}: remove it, or choose another output.")
