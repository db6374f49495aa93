"""Lines of CSV files as tables of text, in which bad lines don't take their neighbours along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tfdde.datasets.readers.headers import csv_names, open_bytes, reading

HEADER_BYTES = 2**22  # at most


def schema(file: Path) -> Any:
    """The columns of a CSV file, text all; ValueError unless their names are its first line."""
    with reading(file), open_bytes(file) as f:
        line = f.readline(HEADER_BYTES)
    if line and (not line.strip() or line.count(b'"') % 2 or b"\r" in line.rstrip(b"\r\n")):
        raise ValueError(
            f"The first line of {str(file)!r} must hold the names of the columns and end in a line "
            f"feed, got {line[:40].decode(errors='replace')!r}."
        )
    return pa.schema([(name, pa.string()) for name in csv_names(file)])


def parse(lines: list[bytes], names: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """Lines of a CSV file as a table of text; a row of nulls where one is wrong, and why."""
    wrong: dict[int, str] = {}
    text = b"".join(lines)
    try:
        text.decode()
    except UnicodeDecodeError:
        for i, line in enumerate(lines):
            if line.decode(errors="ignore").encode() != line:
                wrong[i] = "line is not UTF-8"
    if b'"' in text:
        wrong |= {
            i: "line has an open quote" for i, line in enumerate(lines) if line.count(b'"') % 2
        }
    whole = [i for i in range(len(lines)) if i not in wrong]
    rows, invalid = _parse_whole([lines[i] for i in whole], names)
    wrong |= {whole[i]: reason for i, reason in invalid.items()}
    if wrong:
        order = np.cumsum([i not in wrong for i in range(len(lines))]) - 1
        absent = np.isin(np.arange(len(lines)), list(wrong))
        rows = rows.take(pa.array(order, mask=absent))
    return rows, wrong


def _parse_whole(lines: list[bytes], names: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """Table of the lines that are right, and why each other one is wrong."""
    if not lines:
        return pa.table({name: pa.array([], pa.string()) for name in names}), {}
    text = b"".join(lines)
    # Within a line a carriage return may make two rows of it; the rest can only make one of many.
    if len(lines) == 1 or text.count(b"\r") == text.count(b"\r\n"):
        rows, wrong = _read(text, names)
        if len(rows) + len(wrong) == len(lines):
            return rows, wrong
        if len(lines) == 1:
            reason = "line is not one row: it has a stray carriage return or quote"
            return rows.slice(0, 0), {0: reason}
    middle = len(lines) // 2
    first, wrong = _parse_whole(lines[:middle], names)
    second, more = _parse_whole(lines[middle:], names)
    return pa.concat_tables([first, second]), wrong | {middle + i: r for i, r in more.items()}


def _read(text: bytes, names: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """Table of the rows of CSV that have as many fields as names, and why the others are wrong."""
    wrong: dict[int, str] = {}

    def skip(row: Any) -> str:
        wrong[row.number - 1] = (
            f"line must have {row.expected_columns} fields, got {row.actual_columns}"
        )
        return "skip"

    rows = pyarrow.csv.read_csv(
        pa.py_buffer(text),
        # One thread: several don't count the rows.
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=2 * len(text), column_names=names
        ),
        parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    return rows, wrong
