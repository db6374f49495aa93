"""The signatures of float64 rows, against NumPy in float64."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import scipy.stats
import tensorflow as tf

import tfdde
from tfdde import networks, serving

SCALE = np.float64([0.25, 8.0])  # exact in float32, as the offsets are


def gaussian(offset, log_z=1.5):
    """A density whose network is 0: what is left is its Gaussian base, in standardised units."""
    network = networks.residual_mlp(2, width=4, depth=1)
    network.set_weights([np.zeros_like(w) for w in network.get_weights()])
    base = tfdde.GaussianBase(2)
    rows = np.random.default_rng(0).standard_normal((50, 2)) @ [[1.0, 0.5], [0.0, 1.0]] + 0.25
    base.adapt(rows)
    layer = keras.layers.Normalization(mean=[offset, -offset], variance=SCALE**2)
    density = tfdde.DDE(network, tfdde.Constant(0.5), base, normalization=layer)
    density.partition = tfdde.LogPartition(log_z, 0.05, 1.4, 1.6, 900.0, "importance", 0.5)
    covariance = np.cov(rows, rowvar=False, ddof=0) + 0.25 * np.eye(2)
    return density, scipy.stats.multivariate_normal(rows.mean(axis=0), covariance), log_z


def truth(gauss, log_z, offset, x):
    """Log-density and score of the rows, in float64."""
    inside = (x - [offset, -offset]) / SCALE
    value = gauss.logpdf(inside) - np.log(SCALE).sum() - log_z
    return value, -(inside - gauss.mean) @ np.linalg.inv(gauss.cov) / SCALE


@pytest.mark.parametrize("offset", [65536.0, 1.7e9])
def test_rows_far_from_0_lose_nothing(tmp_path, offset):
    density, gauss, log_z = gaussian(offset)
    noise = np.random.default_rng(1).standard_normal((500, 2))
    x = [offset, -offset] + SCALE * noise
    value, score = truth(gauss, log_z, offset, x)
    path, errors = serving.export_savedmodel(tmp_path / "saved", density)
    signatures = tf.saved_model.load(str(path)).signatures
    folder, _ = serving.export_onnx(tmp_path / "onnx", density)

    def onnx(name):
        session = onnxruntime.InferenceSession(folder / name / "1/model.onnx")
        return session.run(None, {"x": x})[0]

    for name, expected in (("log_density_float64", value), ("score_float64", score)):
        (got,) = signatures[name](x=tf.constant(x)).values()
        assert got.dtype == tf.float32
        for each in (got.numpy(), onnx(name)):
            np.testing.assert_allclose(each, expected, rtol=2e-6, atol=2e-6 * np.abs(score).max())
        assert errors[name] <= serving.BOUND
    rounded = signatures["log_density"](x=tf.constant(x, tf.float32))["log_density"]
    assert np.abs(rounded.numpy() - value).max() > 1e-3  # what the other signatures are for


def test_an_artifact_tells_of_them(tmp_path):
    density, *_ = gaussian(65536.0)
    folder, _ = serving.export_onnx(tmp_path / "onnx", density)
    about = json.loads((folder / "metadata.json").read_text())
    assert about["signatures"]["log_density_float64"] == {
        "inputs": {"x": {"dtype": "float64", "shape": [None, 2]}},
        "outputs": {"log_density": {"dtype": "float32", "shape": [None]}},
    }
    text = (folder / "score_float64/config.pbtxt").read_text()
    assert 'name: "x" data_type: TYPE_FP64 dims: [-1, 2]' in text
    assert "| score_float64 | x float64[rows, 2] | score float32[rows, 2] |" in (
        folder / "model_card.md"
    ).read_text("utf-8")


def test_conditions_have_the_log_z_of_their_own(tmp_path):
    layer = keras.layers.Normalization(mean=[65536.0, 1.0], variance=SCALE**2)
    network = networks.residual_mlp(2, width=8, depth=2, conditions=1)
    noise, base = tfdde.Constant(0.5), tfdde.GaussianBase(2)
    density = tfdde.DDE(network, noise, base, normalization=layer)
    estimates = [
        tfdde.LogPartition(z, 0.05, z - 0.1, z + 0.1, 900.0, "importance", 0.5) for z in (1.0, 3.0)
    ]
    density.partitions = tfdde.LogPartitions([(0.0,), (1.0,)], estimates)
    inner = tfdde.DDE(network, noise, base)
    x = [65536.0, 1.0] + SCALE * np.random.default_rng(1).standard_normal((6, 2))
    c = np.float32([[0.0], [1.0], [0.5]] * 2)
    inside = (x - [65536.0, 1.0]) / SCALE
    s = inner.log_density(inside, conditions=c, normalized=False).numpy()
    path, _ = serving.export_savedmodel(tmp_path / "saved", density)
    function = tf.saved_model.load(str(path)).signatures["log_density_float64"]
    got = function(x=tf.constant(x), condition=tf.constant(c))["log_density"].numpy()
    expected = s - np.log(SCALE).sum() - [1.0, 3.0, np.nan] * 2
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_without_a_normalization_there_are_none(tmp_path):
    density = tfdde.DDE(networks.residual_mlp(2, width=4, depth=1))
    path, errors = serving.export_savedmodel(tmp_path, density)
    names = set(tf.saved_model.load(str(path)).signatures)
    assert names == {"serving_default", "log_density", "score"}
    assert "log_density_float64" not in errors


@pytest.mark.filterwarnings("ignore::tfdde.UnnormalizedWarning")
def test_the_recipe_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "seconds" in c)
    x = tfdde.datasets.sample_toy("checkerboard", 512, seed=0)
    scope = {"keras": keras, "np": np, "tfdde": tfdde, "x": x}
    exec(compile(code, "block", "exec"), scope)
    dde, rows, mean, scale = (scope[name] for name in ("dde", "rows", "mean", "scale"))
    function = tf.saved_model.load("timestamps/1").signatures["log_density_float64"]
    got = function(x=tf.constant(rows))["log_density"].numpy()
    expected = dde.log_density((rows - mean) / scale).numpy() - np.log(scale).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="spread is lost in float32"):
        tfdde.DDE(dde.network, dde.noise, normalization=keras.layers.Normalization()).adapt(rows)
