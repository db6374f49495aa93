"""Stateless random numbers: distinct keys, and independent numbers under keys that are close."""

import itertools

import numpy as np
import pytest

from tfdde.utils import random
from tfdde.utils.random import Stream


def test_keys_differ_in_seed_iteration_and_stream():
    values = [0, 1, 2, 255, 256, 257, 2**31 - 1]
    keys = {
        tuple(random.key(seed, iteration, stream).numpy().tolist())
        for seed, iteration, stream in itertools.product(values, values, Stream)
    }
    assert len(keys) == len(values) ** 2 * len(Stream)


@pytest.mark.parametrize("varied", ["seed", "iteration", "stream"])
def test_numbers_under_close_keys_are_independent(varied):
    count = 11 if varied == "stream" else 300
    base = {"seed": 0, "iteration": 0, "stream": Stream.SAMPLE}
    rows = []
    for i in range(count):
        value = list(Stream)[i] if varied == "stream" else i
        rows.append(random.normal((200,), **base | {varied: value}).numpy())
    z = np.array(rows, np.float64)
    assert abs(z.mean()) < 5 / np.sqrt(z.size) and abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)
    correlation = (z @ z.T / 200)[np.triu_indices(count, 1)]
    # Products of independent standard normal numbers have mean 0 and variance 1.
    spread = np.sqrt(2 / len(correlation))
    assert np.mean(correlation**2) * 200 == pytest.approx(1, abs=6 * spread)
    assert np.abs(correlation).max() < 6 / np.sqrt(200)
