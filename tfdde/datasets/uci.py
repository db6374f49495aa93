"""The UCI data sets of density estimation, prepared from the original files as for MAF.

The rules are those of Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow for Density
Estimation" (2017), appendix D, and of the code published with it (gpapamak/maf). That code reads
files that its authors had prepared in an earlier step, of which they kept no exact record (issue 10
of that repository). So each loader says which details are not confirmed and what it does instead.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfdde.datasets.images import DATA_DIR_VARIABLE
from tfdde.datasets.readers.headers import import_pandas, reading
from tfdde.datasets.tables import Table, check_choice, check_finite, check_varying


class Sizes(NamedTuple):
    """The numbers of rows of the three parts, and of columns."""

    train: int
    validation: int
    test: int
    columns: int

    def __str__(self) -> str:
        return f"{self.train} / {self.validation} / {self.test} rows of {self.columns} columns"


UCI = {
    "power": Sizes(1_659_917, 184_435, 204_928, 6),
    "gas": Sizes(852_174, 94_685, 105_206, 8),
    "hepmass": Sizes(315_123, 35_013, 174_987, 21),
    "miniboone": Sizes(29_556, 3_284, 3_648, 43),
}
# The name of the data set in the UCI Machine Learning Repository, and its files.
_SOURCES = {
    "power": (
        "Individual household electric power consumption",
        ("household_power_consumption.txt",),
    ),
    "gas": ("Gas sensor array under dynamic gas mixtures", ("ethylene_CO.txt",)),
    "hepmass": ("HEPMASS", ("1000_train.csv", "1000_test.csv")),
    "miniboone": ("MiniBooNE particle identification", ("MiniBooNE_PID.txt",)),
}
_SEED = 42  # the seed of MAF's code for power
_POWER_MEASURES = (
    "Global_active_power",
    "Global_reactive_power",
    "Voltage",
    "Global_intensity",
    "Sub_metering_1",
    "Sub_metering_2",
    "Sub_metering_3",
)
_CORRELATION = 0.98
_REPEATS = 5
_CHUNK = 100_000
_Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def _find(name: str, folder: str | os.PathLike | None) -> list[Path]:
    """Return the original files of a data set, or raise FileNotFoundError saying what to do."""
    title, files = _SOURCES[name]
    where = (
        f"get it from the data set {title!r} of the UCI Machine Learning Repository "
        "(archive.ics.uci.edu)"
    )
    root = folder if folder is not None else os.environ.get(DATA_DIR_VARIABLE)
    if not root:
        raise FileNotFoundError(
            f"There is no file {' and '.join(files)} of the {name} data: {where} and give its "
            f"folder as `folder` or in the environment variable {DATA_DIR_VARIABLE}."
        )
    argument = "`folder`" if folder is not None else DATA_DIR_VARIABLE
    paths = []
    for file in files:
        places = [Path(root) / inner / file for inner in (".", name)]
        places += [place.with_name(f"{file}.gz") for place in places]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{argument} must hold the file {file} (or .gz), itself or in its folder {name!r}, "
                f"got {str(root)!r}, which does not; {where}."
            )
        paths.append(found)
    return paths


def _head(path: Path, lines: int) -> list[str]:
    """Return the first lines of a file, stripped."""
    opener = gzip.open if path.suffix == ".gz" else open
    with reading(path), opener(path, "rt", encoding="utf-8") as f:
        head = [line.strip() for line in islice(f, lines)]
    if len(head) < lines:
        raise ValueError(f"{str(path)!r} must have a header and rows, got {len(head)} lines.")
    return head


def _last_tenth(x: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ``x`` without its last tenth, and its last tenth."""
    count = int(0.1 * len(x))
    if count == 0:
        raise ValueError(f"{str(path)!r} has too few rows to split: {len(x)} where 10 are needed.")
    return x[:-count], x[-count:]


def _standardise(
    parts: _Parts, reference: np.ndarray, columns: list[str], path: Path, ddof: int
) -> _Parts:
    """Shift and scale all parts so that ``reference`` has mean 0 and standard deviation 1."""
    if not columns:
        raise ValueError(
            f"{str(path)!r} has no usable column: in each, the smallest value occurs more than "
            f"{_REPEATS} times."
        )
    check_varying(reference, columns, path)
    mean, std = reference.mean(axis=0), reference.std(axis=0, ddof=ddof)
    train, validation, test = (((part - mean) / std).astype(np.float32) for part in parts)
    return train, validation, test


def _split_twice(x: np.ndarray, columns: list[str], path: Path) -> _Parts:
    """Split off the last tenth for test and a tenth of the rest for validation; standardise.

    Mean and standard deviation are those of the rows before the test rows.
    """
    rest, test = _last_tenth(x, path)
    train, validation = _last_tenth(rest, path)
    return _standardise((train, validation, test), rest, columns, path, ddof=0)


def _without_recurring(x: np.ndarray) -> np.ndarray:
    """Return the positions of the columns whose smallest value occurs at most 5 times.

    MAF's code calls this the largest count of any value, but counts the smallest value.
    """
    return np.flatnonzero((x == x.min(axis=0)).sum(axis=0) <= _REPEATS)


def _minutes(clock: str, path: Path) -> int:
    """Return the minute of the day of a time hh:mm:ss."""
    try:
        hours, minutes, _ = map(int, clock.split(":"))
    except ValueError:
        raise ValueError(
            f"Column 'Time' of {str(path)!r} must hold times hh:mm:ss, got {clock!r}."
        ) from None
    return 60 * hours + minutes


def _power(path: Path) -> tuple[_Parts, list[str]]:
    """Prepare the household power data: 6 of 9 columns, without rows that have a missing value.

    The rows are shuffled with ``RandomState(42)``. Then uniform noise is added, in MAF's order of
    draws: in [0, 0.01) to the voltage, [0, 0.001) to the active power, [0, 1) to the sub-meterings.
    Time is the minute of the day; the paper adds uniform noise to it, too.

    Not confirmed: MAF's code adds no noise to the time, so its prepared file must hold it; here it
    is drawn last, in [0, 1). Also not confirmed is that the file has the original order of rows.
    """
    pd = import_pandas()
    header = _head(path, 2)[0].split(";")
    wanted = ("Time", *_POWER_MEASURES)
    for name in wanted:
        if name not in header:
            raise ValueError(f"{str(path)!r} must have a column {name!r}, got {header}.")
    with reading(path):
        frame = pd.read_csv(
            path,
            sep=";",
            usecols=wanted,
            na_values="?",
            dtype={"Time": "category"} | dict.fromkeys(_POWER_MEASURES, np.float64),
        )
    frame = frame.dropna()
    time = frame["Time"].cat
    minutes = np.array([_minutes(clock, path) for clock in time.categories], np.float64)
    columns = [n for n in _POWER_MEASURES if n not in ("Global_reactive_power", "Global_intensity")]
    x = np.column_stack([frame[columns].to_numpy(), minutes[time.codes.to_numpy()]])
    columns.append("Time")
    check_finite(x, columns, path)
    rng = np.random.RandomState(_SEED)
    x = x[rng.permutation(len(x))]
    x[:, 1] += 0.01 * rng.rand(len(x))
    x[:, 0] += 0.001 * rng.rand(len(x))
    x[:, 2:5] += rng.rand(len(x), 3)
    x[:, 5] += rng.rand(len(x))
    return _split_twice(x, columns, path), columns


def _gas(path: Path) -> tuple[_Parts, list[str]]:
    """Prepare the gas sensors under ethylene and CO: 8 of 16 sensors, a quarter of the rows.

    Time and the two concentrations are dropped. While two sensors have a correlation above 0.98,
    the first such sensor is dropped. Rows are standardised by the mean and standard deviation
    (n - 1) of all rows including those of the test, as in MAF's code.

    Not confirmed: the published sizes are those of a quarter of the original 4,208,261 rows, and
    MAF's code has a commented-out ``sample(frac=0.25)`` without a seed. Here the quarter is the
    beginning of a permutation by ``RandomState(42)``: as many rows as MAF has, but other ones.
    """
    pd = import_pandas()
    width = len(_head(path, 2)[1].split())
    if width != 19:
        raise ValueError(
            f"{str(path)!r} must have 19 columns (time, two concentrations, 16 sensors) after "
            f"a header line, got {width}."
        )
    with reading(path):
        x = pd.read_csv(
            path, sep=r"\s+", header=None, skiprows=1, usecols=range(3, 19), dtype=np.float64
        ).to_numpy()
    columns = [f"sensor_{i}" for i in range(1, 17)]
    check_finite(x, columns, path)
    order = np.random.RandomState(_SEED).permutation(len(x))
    x = x[order[: round(0.25 * len(x))]]
    rest, test = _last_tenth(x, path)
    train, validation = _last_tenth(rest, path)
    check_varying(x, columns, path)
    high = np.corrcoef(x, rowvar=False) > _CORRELATION
    keep = list(range(16))
    while (alike := high[np.ix_(keep, keep)].sum(axis=1) > 1).any():
        del keep[int(alike.argmax())]
    columns = [columns[i] for i in keep]
    parts = (train[:, keep], validation[:, keep], test[:, keep])
    return _standardise(parts, x[:, keep], columns, path, ddof=1), columns


def _signal(path: Path, width: int, limit: int) -> np.ndarray:
    """Return the first ``limit`` events of class 1: float64 (rows, width - 1)."""
    pd = import_pandas()
    kept: list[np.ndarray] = []
    with (
        reading(path),
        pd.read_csv(
            path,
            header=None,
            skiprows=1,
            usecols=range(width),
            dtype=np.float64,
            chunksize=_CHUNK,
        ) as chunks,
    ):
        for chunk in chunks:
            x = chunk.to_numpy()
            kept.append(x[x[:, 0] == 1, 1:])
            if sum(map(len, kept)) >= limit:
                break
    return np.concatenate(kept)[:limit]


def _hepmass(train_path: Path, test_path: Path) -> tuple[_Parts, list[str]]:
    """Prepare HEPMASS with mass 1000: signal events only, 21 of 27 features.

    Dropped are the class, the last column of the test file (which the training file lacks), and
    features whose smallest value occurs more than 5 times in the training file. Rows are
    standardised by the mean and standard deviation (n - 1) of training and validation rows. The
    test rows are those of the test file; the validation rows are the last tenth of the training
    file.

    Not confirmed: MAF's code mentions "the first 10 percent of the dataset" and reads files that
    were cut before. Here these are the first 350,136 and 174,987 signal events, as many as
    published. That is a tenth of the signal: half of the 7 and 3.5 million events are signal.
    """
    names, test_names = (
        [name.strip() for name in _head(path, 2)[0].split(",")] for path in (train_path, test_path)
    )
    if len(names) < 2 or len(test_names) < len(names):
        raise ValueError(
            f"{str(test_path)!r} must have the columns of {str(train_path)!r}, a class and "
            f"features, got {len(test_names)} for {len(names)}."
        )
    sizes = UCI["hepmass"]
    x = _signal(train_path, len(names), sizes.train + sizes.validation)
    test = _signal(test_path, len(names), sizes.test)
    train, validation = _last_tenth(x, train_path)
    if len(test) == 0:
        raise ValueError(f"{str(test_path)!r} must hold events of class 1, got none.")
    check_finite(x, names[1:], train_path)
    check_finite(test, names[1:], test_path)
    keep = _without_recurring(x)
    columns = [names[1 + i] for i in keep]
    parts = (train[:, keep], validation[:, keep], test[:, keep])
    return _standardise(parts, x[:, keep], columns, train_path, ddof=1), columns


def _miniboone(path: Path) -> tuple[_Parts, list[str]]:
    """Prepare MiniBooNE: signal events only (electron neutrinos), 43 of 50 columns.

    Outliers, whose first column is below -100, are dropped (11 of 36,499), then columns whose
    smallest value occurs more than 5 times. Rows stay in the order of the file.

    Not confirmed: MAF's prepared file. The rules applied here are in a comment of its code.
    """
    pd = import_pandas()
    counts, first = (line.split() for line in _head(path, 2))
    if len(counts) != 2 or not all(count.isdecimal() for count in counts) or len(first) != 50:
        raise ValueError(
            f"{str(path)!r} must start with the two counts of events and have rows of 50 numbers, "
            f"got a first line of {' '.join(counts[:3])!r} and {len(first)} numbers."
        )
    events = int(counts[0])
    with reading(path):
        x = pd.read_csv(
            path, sep=r"\s+", header=None, skiprows=1, nrows=events, dtype=np.float64
        ).to_numpy()
    if len(x) != events:
        raise ValueError(f"{str(path)!r} must hold {events} signal events, got {len(x)}.")
    names = [str(i) for i in range(50)]
    check_finite(x, names, path)
    x = x[x[:, 0] >= -100]
    if len(x) == 0:
        raise ValueError(f"{str(path)!r} must hold signal events, got outliers only.")
    keep = _without_recurring(x)
    columns = [names[i] for i in keep]
    return _split_twice(x[:, keep], columns, path), columns


_LOADERS: dict[str, Callable[..., tuple[_Parts, list[str]]]] = {
    "power": _power,
    "gas": _gas,
    "hepmass": _hepmass,
    "miniboone": _miniboone,
}


def load_uci(name: str, folder: str | os.PathLike | None = None, check_sizes: bool = True) -> Table:
    """Load one of the four UCI data sets of density estimation, prepared as for MAF.

    The last tenth of the rows is for test and the last tenth of the rest for validation; HEPMASS
    has a file of test rows. Each column is standardised. MAF read files that had been prepared
    before, so some details are not confirmed:

    - power: the noise added to the time of day, and the order of the rows before shuffling;
    - gas: MAF drew a quarter of the rows without a seed, so the rows here are other ones;
    - hepmass: which tenth of the files MAF took; here it is the first signal events;
    - hepmass, miniboone: MAF's rule against recurring values counts only the smallest value; the
      same is done here.

    Args:
        name: power, gas, hepmass or miniboone.
        folder: the folder with the original files, plain or gzip, or with a folder ``name`` that
            has them: household_power_consumption.txt for power, ethylene_CO.txt for gas,
            1000_train.csv and 1000_test.csv for hepmass, MiniBooNE_PID.txt for miniboone. If None,
            the folder that the environment variable TFDDE_DATA_DIR names.
        check_sizes: whether other sizes than the published ones, ``UCI[name]``, are an error.

    Returns:
        The table. Loading gas takes about 1 GB of memory.

    Raises:
        FileNotFoundError: a file is missing; the message says which, and where to get it.
        ImportError: pandas is missing.
        ValueError: the name is unknown, a file is damaged, or the sizes are not the published ones.
    """
    check_choice(name, "name", UCI)
    parts, columns = _LOADERS[name](*_find(name, folder))
    train, validation, test = parts
    found = Sizes(len(train), len(validation), len(test), len(columns))
    if check_sizes and found != UCI[name]:
        raise ValueError(
            f"The {name} data must have the published sizes {UCI[name]}, got {found}; is this the "
            "whole original file? `check_sizes=False` accepts other sizes."
        )
    return Table(*parts, tuple(columns))
