"""benchmarks/step_images.py has the quick preset's networks, losses and gradients in PyTorch."""

import numpy as np
import pytest
import step_images
import tensorflow as tf

ROWS = 4
torch = pytest.importorskip("torch")


def to_torch(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def to_keras(gradient):
    gradient = gradient.numpy()
    return gradient.transpose(2, 3, 1, 0) if gradient.ndim == 4 else gradient


def randomize(network, seed):
    """Give a network other weights than zeros, and return them for PyTorch."""
    rng = np.random.default_rng(seed)
    for v in network.trainable_variables:
        v.assign(v + 0.05 * rng.standard_normal(v.shape).astype(np.float32))
    values = [v.numpy() for v in network.trainable_variables]
    return [w.requires_grad_() for w in step_images.torch_weights(values)]


def base_of(dde):
    base = dde.base
    return [torch.from_numpy(np.array(v)) for v in (base.mean, base.axes, base.variances)]


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        scale = float(np.abs(a).max())
        np.testing.assert_allclose(to_keras(b), np.asarray(a), rtol=0, atol=2e-4 * scale)


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    x = step_images.images(ROWS)
    epsilon = rng.standard_normal((2 * ROWS, *step_images.SHAPE)).astype(np.float32)
    z = rng.standard_normal((ROWS, step_images.LATENTS)).astype(np.float32)
    return x, epsilon, z, np.float32([0.05, 0.2, 0.7, 1.9])


@pytest.mark.parametrize("autograd", [True, False])
def test_the_density_has_the_loss_and_the_gradient_of_the_peer(draws, autograd):
    x, epsilon, _, sigma = draws
    epsilon = epsilon[:ROWS]
    dde = step_images.tfdde_model("density")
    weights = randomize(dde.network, 0)
    total, ours = dde.loss_and_gradients(
        *(tf.constant(a) for a in (x, epsilon, sigma, np.float32(ROWS)))
    )
    args = weights, base_of(dde), to_torch(x), to_torch(epsilon), torch.from_numpy(sigma)
    loss = step_images.density_loss(*args, autograd)
    assert loss.item() == pytest.approx(float(total) / ROWS, rel=1e-4)
    assert_close(ours, torch.autograd.grad(loss, weights))


def test_the_one_stage_step_has_the_losses_and_the_gradients_of_the_peer(draws):
    x, epsilon, z, sigma = draws
    model = step_images.tfdde_model("generator")
    g, r = randomize(model.generator, 1), randomize(model.generated_dde.network, 2)
    totals = tf.constant(float(ROWS)), tf.constant(2.0 * ROWS)
    ours = model._losses_and_gradients(*(tf.constant(a) for a in (x, z, epsilon, sigma)), totals)
    one_stage = step_images.one_stage_step(step_images.generate, step_images.tell_apart)
    theirs, gradients = one_stage(
        g,
        r,
        base_of(model.generated_dde),
        to_torch(x),
        torch.from_numpy(z),
        to_torch(epsilon),
        torch.from_numpy(sigma),
    )
    for (loss, slopes), value, theirs_slopes, total in zip(
        ours, theirs, gradients, totals, strict=True
    ):
        assert value.item() == pytest.approx(float(loss / total), rel=1e-4)
        assert_close(slopes, theirs_slopes)
