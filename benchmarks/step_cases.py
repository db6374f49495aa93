"""The training steps that are measured: networks, batches, matrix products.

For `step_time.py`, `roofline.py` and `step_hlo.py`.
"""

import numpy as np
import step_images
import step_peers

RESIDUAL = {"kind": "residual", "inputs": 2, "width": 32, "depth": 25, "outputs": 1}
CASES = {
    "2-D, 25 x 32": {"density": RESIDUAL, "batch": 2048},
    "tabular, 25 x 128": {"density": RESIDUAL | {"inputs": 8, "width": 128}, "batch": 512},
    "MNIST, dense 15 x 256": {
        "density": {"kind": "dense", "inputs": 784, "width": 256, "depth": 15, "outputs": 1},
        "batch": 100,
    },
    "alternating, 25 x 32": {
        "density": RESIDUAL,
        "generator": RESIDUAL | {"outputs": 2},
        "batch": 2048,
        "dde_steps": 10,
    },
    "images, density": {"images": "density", "batch": step_images.IMAGES},
    "images, generator": {"images": "generator", "batch": step_images.IMAGES},
}


def rows_of(case, rows=20_000):
    """Return data of a case's shape."""
    if "images" in case:
        return step_images.images(rows)
    shape = rows, case["density"]["inputs"]
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def products(case):
    """Return the sizes (rows, inner, columns) of the matrix products of a step, in order.

    For each kernel, the update of a density has two products forward (value, score); the gradient
    of its loss has one more forward, two for the kernel and one backward.  Fewer are needed at
    the linear output, where the loss depends on the kernel only, and at the input. Those of a step
    of images, in which convolutions count as products, are read from its graph.
    """
    if "images" in case:
        import step_graph  # which needs TensorFlow

        shape = case["batch"], *step_images.SHAPE
        return step_graph.products(step_graph.executed(tfdde_model(case), shape))
    b = case["batch"]

    def of(network, uses, last_uses):
        sizes = []
        shapes = step_peers.shapes_of(network)
        for k, (i, o) in enumerate(shapes):
            # These are inputs of the network itself, whose gradient nothing needs.
            own = network["inputs"] if k == 0 or network["kind"] == "dense" else 0
            shape = {
                "value": (b, i, o),
                "score": (b, o, i),
                "weights": (i, b, o),
                "backward": (b, o, i - own),
            }
            sizes += [shape[use] for use in (uses if k < len(shapes) - 1 else last_uses)]
        return [size for size in sizes if min(size) > 0]

    uses = ["value", "score", "value", "weights", "weights", "backward"]
    update = of(case["density"], uses, ["value", "score", "weights"])
    if "generator" not in case:
        return update
    value, score, backward = ["value"], ["value", "score"], ["value", "weights", "backward"]
    generated = of(case["generator"], value, value) + update
    last = of(case["generator"], backward, backward) + 2 * of(case["density"], score, score)
    return case["dde_steps"] * generated + last


def flops(shapes):
    return sum(2 * a * b * c for a, b, c in shapes)


def tfdde_model(case, jit=False, repeats=1):
    """Return a compiled model whose training step is that of the case."""
    import tfdde

    def network(name):
        description = dict(case[name])
        build = {"residual": tfdde.networks.residual_mlp, "dense": tfdde.networks.dense_block}
        inputs, outputs = description.pop("inputs"), description.pop("outputs")
        activation = "silu" if name == "generator" else tfdde.networks.softplus
        return build[description.pop("kind")](
            inputs,
            output_shape=None if outputs == 1 else outputs,
            activation=activation,
            **description,
        )

    def density(seed):
        return tfdde.DDE(network("density"), tfdde.Constant(step_peers.SIGMA), seed=seed)

    def adam():
        # No averaged weights, as the scripts have them, since the peers have none.
        return tfdde.optimizers.FusedAdam(step_peers.RATE)

    settings = {"jit_compile": jit, "steps_per_execution": repeats}
    if case.get("images") == "generator":
        model = step_images.tfdde_model("generator")
        model.compile(adam(), dde_optimizer=adam(), **settings)
        return model
    if "generator" not in case:
        model = step_images.tfdde_model("density") if "images" in case else density(0)
        model.compile(adam(), **settings)
        return model
    latents = case["generator"]["inputs"]
    model = tfdde.Generator(
        network("generator"), density(0), density(1), latents, case["dde_steps"], seed=0
    )
    model.compile(adam(), dde_optimizer=adam(), **settings)
    return model
