"""What bases of all kinds are tested by."""

import keras
import numpy as np
import tensorflow as tf

from tfdde import serving


def adapted_and_loaded(dde, fresh, x, sigma, folder):
    """Adapt a trained density to ``x``; values, scores and losses are then of the new base.

    So are those of ``fresh``, which loads the weights, and of the ``.keras`` file. Returns the
    two.
    """
    rows = x[:9]
    before = dde.log_density(rows, normalized=False)
    fresh.log_density(rows, normalized=False)  # traced, with a Gaussian
    dde.adapt(x)
    values, score = dde.log_density(rows, normalized=False), dde.score(rows)
    assert np.abs(values - before).max() > 0.1
    inside = dde.at(tf.constant(rows), tf.constant(sigma))
    np.testing.assert_allclose(values, inside, rtol=1e-5, atol=1e-5)
    assert np.isfinite(dde.evaluate(x, verbose=0))
    dde.save(folder / "d.keras")
    dde.save_weights(folder / "d.weights.h5")
    fresh.load_weights(folder / "d.weights.h5")
    loaded = fresh, keras.models.load_model(folder / "d.keras")
    for other in loaded:
        again = other.log_density(rows, normalized=False)
        np.testing.assert_allclose(again, values, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(other.score(rows), score, rtol=1e-4, atol=1e-5)
    return loaded


def exported(dde, folder):
    """Export TFLite and SavedModel, which equal Keras; return folder and errors of the ONNX."""
    for path, export in (
        ("d.tflite", serving.export_tflite),
        ("savedmodel", serving.export_savedmodel),
    ):
        _, errors = export(folder / path, dde)
        assert max(errors["log_density"], errors["score"]) < 1e-5
    return serving.export_onnx(folder / "onnx", dde)
