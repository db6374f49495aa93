"""Convolutional networks against loops in NumPy, finite differences and other runtimes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfdde
from tfdde import serving
from tfdde.networks import convolutional

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
RNG = np.random.default_rng


def silu(x):
    return x / (1.0 + np.exp(-x))


def numpy_conv(x, kernel, bias, stride):
    """Convolution of one image (rows, columns, channels) as its definition says, "same" padding."""
    side = len(kernel)
    out = [-(-n // stride) for n in x.shape[:2]]
    missing = [max(0, (m - 1) * stride + side - n) for m, n in zip(out, x.shape[:2], strict=True)]
    x = np.pad(x, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])
    y = np.empty((*out, kernel.shape[-1]))
    for i in range(out[0]):
        for j in range(out[1]):
            patch = x[i * stride : i * stride + side, j * stride : j * stride + side]
            y[i, j] = np.tensordot(patch, kernel, 3) + bias
    return y


def shake(model, seed=3):
    """Off the zeros of the biases, so that none can be left out unseen."""
    rng = RNG(seed)
    for w in model.weights:
        w.assign(w.numpy() + 0.1 * rng.standard_normal(w.shape))
    return model


def layers_of(model, kind):
    return [[w.astype(float) for w in d.get_weights()] for d in model.layers if type(d) is kind]


def test_density_against_numpy():
    model = shake(
        convolutional.conv_density((20, 9, 2), width=3, depth=1, units=5, activation="silu")
    )
    x = RNG(0).standard_normal((2, 20, 9, 2))
    *down, last = layers_of(model, keras.layers.Conv2D)
    (dense, offset), (out,) = layers_of(model, keras.layers.Dense)
    assert len(down) == 2  # 20 -> 10 -> 5, at most 8
    expected = []
    for h in x:
        for kernel, bias in down:
            h = silu(numpy_conv(h, kernel, bias, 2))
        h = h + silu(numpy_conv(h, *last, 1))
        expected.append(silu(h.ravel() @ dense + offset) @ out)
    np.testing.assert_allclose(model(x.astype("float32")), expected, rtol=1e-4, atol=1e-5)


def test_generator_against_its_transpose():
    """A transposed convolution is the adjoint of the convolution: <up(h), x> = <h, down(x)>."""
    model = shake(
        convolutional.conv_generator(3, (12, 12, 1), width=2, depth=0, output_activation=None)
    )
    z = RNG(0).standard_normal((2, 3))
    ((kernel, bias),) = layers_of(model, keras.layers.Conv2DTranspose)
    dense = layers_of(model, keras.layers.Dense)
    made = model(z.astype("float32")).numpy().astype(float) - bias
    for row, y in zip(z, made, strict=True):
        h = row
        for w, b in dense:
            h = silu(h @ w + b)
        x = RNG(1).standard_normal((12, 12, 1))
        down = numpy_conv(x, kernel.transpose(0, 1, 2, 3), 0.0, 2)
        assert (y * x).sum() == pytest.approx((h.reshape(6, 6, 4) * down).sum(), rel=1e-4)


def test_modulated_generator_against_numpy():
    model = shake(
        convolutional.conv_generator(
            3, (10, 12, 2), 2, conditions=1, output_activation=None, modulated=True
        )
    )
    z, condition = RNG(0).standard_normal((4, 3)), RNG(1).standard_normal((4, 1))
    made = model([tf.constant(z, tf.float32), tf.constant(condition, tf.float32)]).numpy()
    first, second, *styles = layers_of(model, keras.layers.Dense)
    gains = layers_of(model, keras.layers.RMSNormalization)
    ((residual, offset),) = layers_of(model, keras.layers.Conv2D)
    ((kernel, bias),) = layers_of(model, keras.layers.Conv2DTranspose)
    for style, y in zip(np.concatenate([z, condition], axis=1), made, strict=True):

        def modulated(h, k, style=style):
            h = gains[k][0] * h / np.sqrt((h**2).mean(axis=-1, keepdims=True) + 1e-6)
            (scale, one), (shift, zero) = styles[2 * k : 2 * k + 2]
            return h * (style @ scale + one) + style @ shift + zero

        h = style
        for w, b in (first, second):
            h = silu(h @ w + b)
        h = h.reshape(5, 6, 4)
        h = modulated(h + silu(numpy_conv(modulated(h, 0), residual, offset, 1)), 1)
        x = RNG(2).standard_normal((10, 12, 2))
        down = numpy_conv(x, kernel, 0.0, 2)  # of which the transposed one is the adjoint
        assert ((y - bias) * x).sum() == pytest.approx((h * down).sum(), rel=1e-4)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("shape", [(28, 28, 1), (13, 30, 3), (5, 4, 1), (32, 32, 3)])
def test_any_size(shape, modulated):
    density = convolutional.conv_density(
        shape, width=4, depth=1, units=8, levels=True, conditions=2
    )
    assert [tuple(i.shape[1:]) for i in density.inputs] == [shape, (1,), (2,)]
    generator = convolutional.conv_generator(3, shape, width=4, conditions=2, modulated=modulated)
    c, level = tf.ones((2, 2)), tf.zeros((2, 1))
    x = generator([tf.constant(RNG(0).standard_normal((2, 3)), tf.float32), c])
    assert x.shape == (2, *shape) and 0.0 <= np.min(x) <= np.max(x) <= 1.0
    assert 0.05 < np.std(x) < 0.45  # neither flat nor black and white at first
    assert density([x, level, c]).shape == (2, 1)
    # Every pixel matters.
    x = tf.constant(RNG(0).random((2, *shape)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        s = density([x, level, c])
    assert (np.abs(tape.gradient(s, x)) > 0).all()


@pytest.mark.parametrize("shifts", ["pixel", "channel"])
def test_level_and_condition_shift_every_layer_once_trained(shifts):
    model = convolutional.conv_density(
        (8, 8, 1), width=2, depth=1, levels=True, conditions=1, shifts=shifts
    )
    rows = tf.constant(RNG(0).random((3, 8, 8, 1)), tf.float32)

    def s(level, condition):
        return model([rows, tf.fill((3, 1), level), tf.fill((3, 1), condition)])

    shifts = [d for d in model.layers if isinstance(d, keras.layers.Dense) and not d.use_bias]
    shifts = [d for d in shifts if d.units > 1]
    assert len(shifts) == 2 and not any(np.any(d.kernel) for d in shifts)
    before = np.array([s(-1.0, 0.0), s(1.0, 0.0), s(1.0, 1.0)])
    for shift in shifts:
        shift.kernel.assign(shift.kernel + 0.3)
    assert (np.abs(before - np.array([s(-1.0, 0.0), s(1.0, 0.0), s(1.0, 1.0)])) > 1e-4).all()


@pytest.mark.parametrize(
    ("levels", "shifts"), [(False, "pixel"), (True, "pixel"), (True, "channel")]
)
def test_artifacts_have_its_scores_and_samples_for_any_number_of_rows(tmp_path, levels, shifts):
    keras.utils.set_random_seed(0)
    shape = (9, 12, 3)
    noise = tfdde.LogUniform(0.5, 4.0) if levels else tfdde.Constant(0.5)

    def density():
        network = shake(convolutional.conv_density(shape, 4, 1, 8, levels=levels, shifts=shifts))
        return tfdde.DDE(network, noise, tfdde.GaussianBase(shape), antithetic=True, seed=1)

    dde = density()
    generator = tfdde.Generator(
        shake(convolutional.conv_generator(4, shape, 4, modulated=shifts == "channel")),
        dde,
        density(),
        latent_dim=4,
        seed=2,
    )
    # Both verify themselves on 64 rows, one and none.
    serving.export_savedmodel(tmp_path / "saved", dde, generator)
    lite, errors = serving.export_tflite(tmp_path / "m.tflite", dde, generator)
    assert errors["score"] < 1e-5 and errors["sample"] < 1e-5
    score = Interpreter(str(lite)).get_signature_runner("score")
    x = RNG(0).random((3, *shape)).astype("float32")
    step = 1e-2
    for pixel in ((0, 0, 0), (4, 7, 2), (8, 11, 1)):
        up, down = x.copy(), x.copy()
        up[(slice(None), *pixel)] += step
        down[(slice(None), *pixel)] -= step
        ends = [dde.log_density(v, normalized=False).numpy() for v in (up, down)]
        slope = (ends[0] - ends[1]) / (2 * step)
        found = score(x=x)["score"][(slice(None), *pixel)]
        np.testing.assert_allclose(found, slope, rtol=2e-2, atol=2e-2)


def test_learns_images_that_a_gaussian_does_not_know(tmp_path):
    """Two stripes, each with one of two signs: four modes, whose score is known exactly."""
    keras.utils.set_random_seed(0)
    rng = RNG(0)
    patterns = np.zeros((2, 8, 8, 1), "float32")
    patterns[0, 2], patterns[1, :, 5] = 0.5, 0.5
    signs = np.array([(a, b) for a in (-1, 1) for b in (-1, 1)], "float32")
    modes = 0.5 + 0.5 * np.tensordot(signs, patterns, 1)
    x = modes[rng.integers(0, 4, 4096)]
    base = tfdde.GaussianBase((8, 8, 1))
    base.adapt(x)
    dde = tfdde.DDE(
        convolutional.conv_density((8, 8, 1), 16, 1, 32), tfdde.Constant(0.3), base, antithetic=True
    )
    dde.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(4e-3, 960)))
    dde.fit(x, batch_size=64, epochs=15, verbose=0)
    y = (x[:500] + 0.3 * rng.standard_normal((500, 8, 8, 1))).astype("float32")
    weights = np.exp(-((y[:, None] - modes) ** 2).sum((2, 3, 4)) / (2 * 0.3**2))
    weights /= weights.sum(1, keepdims=True)
    exact = (np.tensordot(weights, modes, 1) - y) / 0.3**2
    with tf.GradientTape() as tape:
        points = tf.constant(y)
        tape.watch(points)
        gaussian = base(points, tf.constant(0.3))
    gaussian = tape.gradient(gaussian, points).numpy()
    ours = dde.score(y).numpy()
    assert np.mean((ours - exact) ** 2) < 0.25 * np.mean((gaussian - exact) ** 2)
    path = tmp_path / "density.keras"
    dde.save(path)
    np.testing.assert_array_equal(keras.saving.load_model(path).score(y), ours)


def test_compiled_by_xla_it_trains_alike():
    x = RNG(0).random((24, 9, 9, 1)).astype("float32")
    weights = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        network = convolutional.conv_density((9, 9, 1), 4, 1, 8, levels=True)
        dde = tfdde.DDE(network, tfdde.LogUniform(0.3, 2.0), time_weight=0.0, seed=1)
        dde.compile(keras.optimizers.SGD(0.1), jit_compile=jit)
        dde.fit(x, batch_size=8, epochs=1, verbose=0)
        weights.append(network.get_weights())
    for v, w in zip(*weights, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: convolutional.conv_density(28), r"`image_shape` must be .*got 28"),
        (lambda: convolutional.conv_density((28, 28)), r"`image_shape` must be .*got \(28, 28\)"),
        (
            lambda: convolutional.conv_generator(3, (0, 2, 1)),
            r"`image_shape` must be .*got \(0, 2, 1\)",
        ),
        (lambda: convolutional.conv_density((8, 8, 1), width=0), "`width`.*0"),
        (lambda: convolutional.conv_generator(0, (8, 8, 1)), "`latent_dim`.*0"),
        (lambda: convolutional.conv_density((8, 8, 1), shifts="row"), "`shifts`.*'row'"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
