"""benchmarks/step_time.py counts the right products, and its peers have tfdde's networks."""

import mnist
import numpy as np
import pytest
import step_cases
import step_images
import step_peers
import tensorflow as tf

import tfdde
from tfdde import losses, networks


def matmul_flops(graph):
    total = 0
    for op in graph.get_operations():
        if op.type == "MatMul":
            inner = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
            total += 2 * inner * op.outputs[0].shape.num_elements()
    return total


@pytest.mark.parametrize("inputs", [2, 5])
def test_products_are_those_of_the_graph(inputs):
    network = {"kind": "residual", "inputs": inputs, "width": 8, "depth": 3, "outputs": 1}
    dde = tfdde.DDE(networks.residual_mlp(inputs, 8, 3), tfdde.Constant(0.2))
    rows = tf.TensorSpec((7, inputs))
    scalar = tf.TensorSpec(())
    step = tf.function(dde.loss_and_gradients)
    graph = step.get_concrete_function(rows, rows, scalar, scalar).graph
    expected = step_cases.flops(step_cases.products({"density": network, "batch": 7}))
    assert matmul_flops(graph) == expected


@pytest.mark.parametrize("kind", ["residual", "dense"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_peers_have_the_same_networks(kind, outputs):
    network = {"kind": kind, "inputs": 3, "width": 5, "depth": 2, "outputs": outputs}
    build = {"residual": networks.residual_mlp, "dense": networks.dense_block}[kind]
    ours = build(3, 5, 2, output_shape=None if outputs == 1 else outputs)
    weights = [w + 0.1 for w in step_peers.first_weights(network, 0)]
    ours.set_weights(weights[: len(ours.weights)])
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    expected = step_peers.apply(
        network, weights, x, lambda a: np.logaddexp(0, a), lambda parts, axis: np.hstack(parts)
    )
    np.testing.assert_allclose(ours(x), expected, rtol=1e-4, atol=1e-5)


def test_images_have_the_sizes_of_the_preset():
    args = mnist.parse(["--preset", "quick", "--dataset", "mnist"], None)
    assert (args.width, args.latent_dim) == (step_images.WIDTH, step_images.LATENTS)
    assert args.batch_size == 2 * step_images.IMAGES
    assert mnist.LEVEL_POWERS[args.ratio] == 1.0
    assert (step_images.CLIP, step_images.MOST_WEIGHT) == (losses.CLIP, losses.MOST_WEIGHT)
    generator = step_images.tfdde_model("generator")
    networks = {
        "density": step_images.tfdde_model("density").network,
        "log-ratio": generator.generated_dde.network,
        "generator": generator.generator,
    }
    for name, network in networks.items():
        shapes = [tuple(v.shape) for v in network.trainable_variables]
        assert shapes == step_images.shapes_of(name)
