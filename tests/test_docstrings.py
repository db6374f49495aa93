"""The examples of the package's docstrings run and print what they show."""

import ast
import doctest
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde

ROOT = Path(__file__).parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef


def docstrings_with_examples():
    """Path, name, line and text of each docstring of the package that holds an example."""
    for path in sorted((ROOT / "tfdde").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, DOCUMENTED) and ">>>" in (text := ast.get_docstring(node) or ""):
                line = node.body[0].lineno - 1
                yield str(path.relative_to(ROOT)), getattr(node, "name", "module"), line, text


EXAMPLES = list(docstrings_with_examples())


# keras-tuner's own threads
@pytest.mark.filterwarnings("ignore:(currentThread|getName)\\(\\) is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "path, name, line, text", EXAMPLES, ids=[f"{path}:{name}" for path, name, *_ in EXAMPLES]
)
def test_examples_run_as_printed(path, name, line, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    scope = {
        "np": np,
        "tf": tf,
        "keras": keras,
        "tfdde": tfdde,
        "x": tfdde.datasets.sample_toy("checkerboard", 512, seed=0),
        "labels": np.arange(512) % 10,
    }
    example = doctest.DocTestParser().get_doctest(text, scope, name, path, line)
    report = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(example, out=report.append)
    assert runner.tries > 0
    assert not runner.failures, "".join(report)


def test_the_public_models_have_examples():
    shown = {name for _, name, *_ in EXAMPLES}
    assert {"DDE", "Generator", "GaussianBase", "DDEstimator"} <= shown
