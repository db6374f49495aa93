"""Stateless random numbers: distinct keys, and independent numbers under keys that are close."""

import itertools

import numpy as np
import pytest

from tfdde.utils import random
from tfdde.utils.random import Purpose


def test_keys_differ_in_seed_iteration_and_purpose():
    values = [0, 1, 2, 255, 256, 257, 2**31 - 1]
    keys = {
        tuple(random.key(seed, iteration, purpose).numpy().tolist())
        for seed, iteration, purpose in itertools.product(values, values, Purpose)
    }
    assert len(keys) == len(values) ** 2 * len(Purpose)


@pytest.mark.parametrize("varied", ["seed", "iteration", "purpose"])
def test_numbers_under_close_keys_are_independent(varied):
    count = 11 if varied == "purpose" else 300
    base = {"seed": 0, "iteration": 0, "purpose": Purpose.SAMPLE}
    rows = []
    for i in range(count):
        value = list(Purpose)[i] if varied == "purpose" else i
        rows.append(random.normal((200,), **base | {varied: value}).numpy())
    z = np.array(rows, np.float64)
    assert abs(z.mean()) < 5 / np.sqrt(z.size) and abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)
    correlation = (z @ z.T / 200)[np.triu_indices(count, 1)]
    # Products of independent standard normal numbers have mean 0 and variance 1.
    spread = np.sqrt(2 / len(correlation))
    assert np.mean(correlation**2) * 200 == pytest.approx(1, abs=6 * spread)
    assert np.abs(correlation).max() < 6 / np.sqrt(200)
