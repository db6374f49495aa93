"""Files that are never half-written, and JSON objects read with a clear error."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors of storage


class atomic:  # noqa: N801, used like a function
    """Context that yields a temporary path in the same folder, renamed to ``path`` on success.

    The temporary name has the same ending as ``path``, since Keras chooses its format by that.

    >>> from pathlib import Path
    >>> from tfdde.utils.files import atomic
    >>> with atomic("note.txt") as temporary:
    ...     characters = temporary.write_text("whole")
    >>> Path("note.txt").read_text()
    'whole'
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{os.getpid()}.{self.path.name}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            with open(self.temporary, "rb") as f:
                os.fsync(f.fileno())
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
            if isinstance(value, OSError) and value.errno in FULL:
                # h5py's message has many lines, and not this name.
                raise OSError(value.errno, os.strerror(value.errno), str(self.path)) from value


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Context that yields a temporary folder, renamed to ``path`` on success, else removed."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write what JSON can hold to a file, which is replaced as a whole."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: the file can't be read, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as a JSON object: {error}.") from None
    return content
