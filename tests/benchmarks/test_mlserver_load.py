"""The load test of MLServer finds wrong values and failures, and an exchange of models has none."""

import json

import mlserver_load
import numpy as np
import pytest
import record


def answered(values):
    return json.dumps({"outputs": [{"shape": list(values.shape), "data": values.tolist()}]})


def test_a_value_counts_only_for_a_density_that_the_server_may_have():
    served = mlserver_load.Served()
    client = mlserver_load.Client(0, 0, [], [], served, 0.0)
    values = [np.array([1.0, -50.0]), np.array([2.0, -50.0])]
    client.check_good(200, answered(values[0] + 4e-4), values, {0})
    client.check_good(200, answered(values[0] + 6e-4), values, {0})
    client.check_good(200, answered(values[0][:1]), values, {0})
    client.check_good(200, answered(values[1]), values, {0})
    served.now = {0, 1}
    client.check_good(200, answered(values[1]), values, {0})
    served.now = {1}
    client.check_good(200, answered(values[0]), values, {1})
    client.check_good(200, answered(values[0]), values, {0})
    client.check_good(503, "", values, {1})
    assert client.counts == {
        "good, of density 1": 2,
        "good, of density 2": 1,
        "good, wrong": 4,
        "good, failed": 1,
    }
    assert len(client.problems) == 5


@pytest.mark.parametrize(
    ("status", "text", "refused"),
    [
        (400, '{"error":"The inputs must be x."}', True),
        (422, '{"detail":[]}', True),
        (200, "{}", False),
        (500, "Internal Server Error", False),
        (400, "Traceback (most recent call last):", False),
    ],
)
def test_a_bad_request_must_be_refused_by_one_line(status, text, refused):
    client = mlserver_load.Client(0, 0, [], [], mlserver_load.Served(), 0.0)
    client.check_bad(status, text)
    assert client.counts["bad, refused"] == refused and len(client.problems) == 1 - refused


def test_growth_of_memory_is_that_of_the_settled_part():
    sizes = [(t, 800 - t if t < 60 else 700 + 3 * t / 60) for t in range(0, 240, 5)]
    assert mlserver_load.slope(sizes, 240) == pytest.approx(3.0)
    assert mlserver_load.by_minute(sizes) == [800, 706, 709, 712]


def test_no_good_request_fails_while_models_are_exchanged(monkeypatch):
    pytest.importorskip("mlserver")
    rows = {}
    monkeypatch.setattr(record, "add", lambda name, row: rows.update({name: row}))
    options = ["--seconds", "12", "--clients", "4", "--reload-every", "2.4"]
    assert mlserver_load.main(options) == 0
    requests = rows["mlserver"]["requests"]
    assert set(requests) == {"bad, refused", "good, of density 1", "good, of density 2"}
    assert rows["mlserver"]["loads"] >= 1 and min(requests.values()) > 0
