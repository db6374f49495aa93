"""Damaged files of every kind end in one clear line: a short run of benchmarks/fuzz.py."""

import fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEEDS = fuzz.seeds()


@st.composite
def damaged(draw, target):
    """A valid file with a few pieces cut, copied, overwritten or put in."""
    data = draw(st.sampled_from(SEEDS[target]))
    for _ in range(draw(st.integers(0, 4))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        middle = draw(st.one_of(st.binary(max_size=8), st.just(2 * data[start:end])))
        data = data[:start] + middle + data[end:]
    return data


@pytest.mark.parametrize("target", fuzz.TARGETS)
@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_end_in_one_clear_line(tmp_path, target, data):
    fuzz.try_one(target, data.draw(damaged(target)), tmp_path)


@pytest.mark.parametrize(
    "target, data",
    [
        ("idx", SEEDS["idx"][1][:9]),
        ("csv", b"a,b\n1,x\n"),
        ("blocks", b""),
        ("config", b'{"arguments": [1]}'),
        ("config", b'{"arguments": {"sigma": 0.3}}'),
        ("config", b"[" * 100_000),
    ],
)
def test_what_is_wrong_is_an_error(tmp_path, target, data):
    call, expected = fuzz.TARGETS[target]
    with pytest.raises(expected):
        call(data, tmp_path)


def test_the_fuzzer_finds_what_is_no_clear_error(tmp_path, monkeypatch):
    for wrong in (KeyError("a"), ValueError(""), ValueError("two\nlines")):

        def call(data, folder, wrong=wrong):
            raise wrong

        monkeypatch.setitem(fuzz.TARGETS, "idx", (call, ValueError))
        with pytest.raises((KeyError, AssertionError)):
            fuzz.try_one("idx", b"", tmp_path)


@pytest.mark.parametrize("target", ["idx", "blocks"])
def test_short_run_guided_by_coverage(target):
    pytest.importorskip("atheris")
    assert fuzz.run(target, inputs=1_000)["inputs"] == 1_000
