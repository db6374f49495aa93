"""Files written by earlier versions load, resume and give the numbers they gave.

``tests/fixtures/make.py`` wrote them, and ``expected.json`` what they were worth then.
"""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import make

import tfdde
from tfdde import runs, serving

EXPECTED = json.loads((make.HERE / "expected.json").read_text())


def assert_near(values, name):
    np.testing.assert_allclose(np.asarray(values), EXPECTED[name], rtol=2e-5, atol=2e-5)


def test_a_saved_density_keeps_its_values_and_its_log_z():
    dde = keras.models.load_model(make.HERE / "density.keras")
    assert dde.normalized
    assert dde.partition == tfdde.LogPartition(**EXPECTED["partition"])
    assert_near(dde.log_density(make.POINTS, normalized=True), "density")
    assert_near(dde.score(make.POINTS, sigma=0.5), "score")


def test_a_saved_conditional_density_keeps_its_values():
    dde = keras.models.load_model(make.HERE / "conditional.keras")
    values = dde.log_density(make.POINTS, conditions=make.CLASSES, normalized=True)
    assert_near(values, "conditional")


def test_a_saved_generator_keeps_its_samples():
    generator = keras.models.load_model(make.HERE / "generator.keras")
    assert_near(generator.decode(make.POINTS), "decode")
    assert_near(generator.sample(4, seed=9), "sample")


def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path):
    folder = Path(shutil.copytree(make.HERE / "run", tmp_path / "run"))
    run = runs.Run(folder, {"seed": 3}, resume=True)
    dde = make.density(seed=3, averages=True)
    assert run.train("density", dde, make.batches, make.STEPS, 4)
    assert int(dde.optimizer.iterations) == EXPECTED["run"]["iterations"]
    values = dde.log_density(make.POINTS, normalized=False)
    np.testing.assert_allclose(values, EXPECTED["run"]["log_density"], rtol=1e-4, atol=1e-4)
    sums = [np.abs(w).sum() for w in dde.get_weights()]
    assert sums == pytest.approx(EXPECTED["run"]["weights"], rel=1e-4)


def test_a_savedmodel_keeps_its_values():
    loaded = tf.saved_model.load(str(make.HERE / "savedmodel" / "1"))
    x = tf.constant(make.POINTS)
    assert_near(loaded.signatures["log_density"](x=x)["log_density"], "density")
    assert_near(loaded.signatures["decode"](z=x)["x"], "decode")


def test_runs_of_earlier_versions_export(tmp_path):
    shutil.copy(make.HERE / "density.keras", tmp_path)
    density, generator = serving.load_run(tmp_path)
    assert generator is None
    path, errors = serving.export_savedmodel(tmp_path / "savedmodel", density)
    assert path.exists()
    assert max(errors[name] for name in ("log_density", "score")) < 1e-5
