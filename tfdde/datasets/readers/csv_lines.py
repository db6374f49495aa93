"""Parse lines of a CSV file to a table of text, so that a bad line does not spoil its neighbours.

Arrow's parser works on whole blocks, where an open quote or a stray carriage return would join or
split rows. ``parse`` checks that every line is one row, and halves the block until it is so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tfdde.datasets.readers.headers import PLAIN, Dialect, csv_names


def schema(file: Path, dialect: Dialect = PLAIN, chosen: Sequence[str] = ()) -> Any:
    """Return the columns of a CSV file, all of type text; arguments and errors of ``csv_names``."""
    return pa.schema([(name, pa.string()) for name in csv_names(file, dialect, chosen)])


def parse(
    lines: list[bytes], names: Sequence[str], delimiter: str = ","
) -> tuple[Any, dict[int, str]]:
    """Parse lines of a CSV file.

    Args:
        lines: with their ends, in UTF-8.
        names: of the columns.
        delimiter: between the cells.

    Returns:
        A pyarrow table of text with one row for each line, of nulls where the line is wrong; and
        by the number of each wrong line the reason.
    """
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
    rows, invalid = _parse_whole([lines[i] for i in whole], names, delimiter)
    wrong |= {whole[i]: reason for i, reason in invalid.items()}
    if wrong:
        order = np.cumsum([i not in wrong for i in range(len(lines))]) - 1
        absent = np.isin(np.arange(len(lines)), list(wrong))
        rows = rows.take(pa.array(order, mask=absent))
    return rows, wrong


def _parse_whole(
    lines: list[bytes], names: Sequence[str], delimiter: str
) -> tuple[Any, dict[int, str]]:
    """Return the table of the lines that are right, and the reason for each of the others."""
    if not lines:
        return pa.table({name: pa.array([], pa.string()) for name in names}), {}
    text = b"".join(lines)
    # A carriage return may split a line into two rows, while quotes only join lines to one row. So
    # without stray carriage returns, as many rows as lines means that each line is one row.
    if len(lines) == 1 or text.count(b"\r") == text.count(b"\r\n"):
        rows, wrong = _read(text, names, delimiter)
        if len(rows) + len(wrong) == len(lines):
            return rows, wrong
        if len(lines) == 1:
            reason = "line is not one row: it has a stray carriage return or quote"
            return rows.slice(0, 0), {0: reason}
    middle = len(lines) // 2
    first, wrong = _parse_whole(lines[:middle], names, delimiter)
    second, more = _parse_whole(lines[middle:], names, delimiter)
    return pa.concat_tables([first, second]), wrong | {middle + i: r for i, r in more.items()}


def _read(text: bytes, names: Sequence[str], delimiter: str) -> tuple[Any, dict[int, str]]:
    """Return the table of the rows with as many fields as names, and a reason for the others."""
    wrong: dict[int, str] = {}

    def skip(row: Any) -> str:
        wrong[row.number - 1] = (
            f"line must have {row.expected_columns} fields, got {row.actual_columns}"
        )
        return "skip"

    rows = pyarrow.csv.read_csv(
        pa.py_buffer(text),
        # Several threads would not number the rows.
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=2 * len(text), column_names=names
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, invalid_row_handler=skip, ignore_empty_lines=False
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    return rows, wrong
