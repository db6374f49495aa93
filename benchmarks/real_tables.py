"""Real tables for the benchmarks: all columns numbers, dequantised, in the data's own units.

Each is a function of the folder that has the tables and of the random numbers for the noise, and
returns float64 rows (m, n).  ``TABLES`` has them by name.
"""

import numpy as np

ROWS = 50_000, 5_000, 10_000  # for training, validation and test, or as many in proportion


def power_month(folder, rng):
    """Six columns of household power, with noise as the recipe of POWER has it."""
    file = np.load(folder / "power-month" / "power_48k_minutes.npz")
    x, minutes = file["X"].astype(np.float64), file["t"] // 60 % 1440
    names = [str(name) for name in file["columns"]]
    steps = {"Global_active_power": 0.001, "Voltage": 0.01, "Sub_metering_1": 1.0}
    steps |= {"Sub_metering_2": 1.0, "Sub_metering_3": 1.0}
    columns = [x[:, names.index(name)] + step * rng.random(len(x)) for name, step in steps.items()]
    rows = np.stack([*columns, minutes + rng.random(len(x))], axis=1)
    return rows[np.isfinite(rows).all(axis=1)]


def higgs_sample(folder, rng):
    """The 24 columns that are not b-tags, which take few values."""
    file = np.load(folder / "higgs-sample" / "higgs_7500.npz")
    x = np.concatenate([file["X_train"], file["X_test"]]).astype(np.float64)
    few = [k for k in range(x.shape[1]) if len(np.unique(x[:, k])) < 20]
    return np.delete(x, few, axis=1)


def bsds300(folder, rng):
    """Grey patches of 8 x 8 pixels without their mean: 63 columns, as MAF has them."""
    x = np.load(folder / "bsds300" / "bsds300_patches_8x8_u8.npz")["train"][: sum(ROWS)]
    x = (x + rng.random(x.shape)) / 256
    return (x - x.mean(axis=1, keepdims=True))[:, :-1]


def nycflights13(folder, rng):
    """The ten columns of whole numbers, with uniform noise."""
    x = np.load(folder / "nycflights13" / "flights_complete.npz")["X"]
    return x + rng.random(x.shape)


def diamonds(folder, rng):
    """The seven columns of numbers, with uniform noise within the step of each."""
    x = np.load(folder / "diamonds" / "diamonds.npz")["X"].astype(np.float64)
    return x + rng.random(x.shape) * [0.01, 0.1, 1, 1, 0.01, 0.01, 0.01]


TABLES = {
    "power-month": power_month,
    "higgs-sample": higgs_sample,
    "nycflights13": nycflights13,
    "diamonds": diamonds,
    "bsds300": bsds300,
}


def split(name, seed, folder):
    """Training, validation and test rows of a table, float32; seed is of noise and split."""
    rng = np.random.default_rng(seed)
    x = TABLES[name](folder, rng)
    x = x[rng.permutation(len(x))[: sum(ROWS)]].astype(np.float32)
    validation, test = (len(x) * part // sum(ROWS) for part in ROWS[1:])
    return x[validation + test :], x[:validation], x[validation:][:test]
