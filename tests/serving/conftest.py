"""One density with a generator, and its artifacts, for the tests of several runtimes."""

import keras
import numpy as np
import pytest

import tfdde
from tfdde import networks, serving
from tfdde.utils.files import write_json


@pytest.fixture(scope="session")
def models():
    """A normalised density on a base, of columns of different scales, and a generator to it."""
    keras.utils.set_random_seed(1)
    layer = keras.layers.Normalization()
    layer.adapt(np.float32([[2, 1], [4, 50]]))
    network = networks.residual_mlp(2, width=16, depth=2)
    base = tfdde.GaussianBase(2)
    base.adapt(np.random.default_rng(2).standard_normal((50, 2), np.float32) + 0.5)
    density = tfdde.DDE(network, tfdde.Constant(0.2), base, normalization=layer)
    density.partition = tfdde.LogPartition(2.0, 0.05, 1.9, 2.1, 900.0, "importance", 0.2)
    p, q = (tfdde.DDE(networks.residual_mlp(2, width=4, depth=1)) for _ in range(2))
    decoder = networks.residual_mlp(3, width=16, depth=2, output_shape=2)
    return density, tfdde.Generator(decoder, p, q, latent_dim=3)


@pytest.fixture(scope="session")
def artifacts(models, tmp_path_factory):
    """A SavedModel of a table with the columns price and weight, and a TFLite file."""
    folder = tmp_path_factory.mktemp("artifacts")
    write_json(folder / "result.json", {"columns": ["price", "weight"]})
    saved, _ = serving.export_savedmodel(folder / "savedmodel", *models, run=folder)
    lite, _ = serving.export_tflite(folder / "model.tflite", *models)
    return saved, lite


@pytest.fixture(scope="session")
def expected(models):
    """What a signature must return for its inputs, by Keras."""
    density, generator = models
    inner = tfdde.DDE(density.network, density.noise, density.base)
    mean, scale = np.float64([[3.0, 25.5], [1.0, 24.5]])  # of the layer above

    def of(name, x=None, z=None, num=None, seed=None):
        if name == "log_density_float64":
            inside = (np.float64(x) - mean) / scale
            s = inner.log_density(inside, normalized=False).numpy()
            return s - np.log(scale).sum() - 2.0
        if name == "score_float64":
            return inner.score((np.float64(x) - mean) / scale).numpy() / scale
        if name == "score":
            return density.score(np.float32(x)).numpy()
        if name == "decode":
            return generator.decode(np.float32(z)).numpy()
        if name == "sample":
            return generator.sample(int(num), seed=int(seed)).numpy()
        if name == "sample_rows":
            seeds = np.asarray(seed).tolist()
            return np.concatenate([generator.sample(1, seed=s) for s in seeds])
        return density.log_density(np.float32(x), normalized=True).numpy()

    return of
