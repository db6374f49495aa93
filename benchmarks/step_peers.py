"""Training steps of the same networks and losses, written in plain PyTorch and JAX.

For `step_time.py`: `torch_step` and `jax_step` return a function without arguments that makes one
step. A network is a dictionary: "kind" (residual or dense), "inputs", "width", "depth", "outputs".
"""

import math

import numpy as np

SIGMA = 0.2
RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-7  # of Adam, as Keras has them


def shapes_of(network):
    """Return the shapes of the kernels, first to last."""
    n, width, depth = network["inputs"], network["width"], network["depth"]
    if network["kind"] == "residual":
        return [(n, width), *[(width, width)] * depth, (width, network["outputs"])]
    return [
        *[(n + k * width, width) for k in range(depth)],
        (n + depth * width, network["outputs"]),
    ]


def first_weights(network, seed):
    """Return kernels and offsets, small enough for any depth."""
    rng = np.random.default_rng(seed)
    weights = []
    for i, o in shapes_of(network):
        weights.append(rng.standard_normal((i, o)).astype(np.float32) * 0.3 / math.sqrt(i))
        weights.append(np.zeros(o, np.float32))
    return weights


def apply(network, weights, x, activation, concatenate):
    """Apply the network to arrays of PyTorch or JAX: (batch, inputs) -> (batch, outputs)."""
    (first, b), *hidden, (last, c) = zip(weights[::2], weights[1::2], strict=True)
    if network["kind"] == "residual":
        h = x @ first + b
        for kernel, offset in hidden:
            h = h + activation(h @ kernel + offset)
    else:
        h = x
        for kernel, offset in [(first, b), *hidden]:
            h = concatenate([h, activation(h @ kernel + offset)], -1)
    y = h @ last
    return y if network["outputs"] == 1 else y + c  # a density has no last offset


def torch_step(case, x, compiled=False, autograd=True):
    """One step in PyTorch, eager or with the losses compiled by torch.compile.

    The score is found by torch.autograd.grad with create_graph, or by torch.func.grad.
    """
    import torch
    from torch.nn.functional import silu, softplus

    x = torch.from_numpy(x)
    batch = case["batch"]

    def make(name, seed):
        weights = [torch.from_numpy(w) for w in first_weights(case[name], seed)]
        weights = weights[:-1] if case[name]["outputs"] == 1 else weights
        weights = [w.requires_grad_() for w in weights]
        fused = torch.optim.Adam(weights, RATE, (BETA_1, BETA_2), EPSILON, fused=True)
        return weights, fused

    def network(name, weights, y):
        if case[name]["outputs"] == 1:
            weights = [*weights, None]
        activation = silu if name == "generator" else softplus
        return apply(case[name], weights, y, activation, torch.cat)

    def loss_of(weights, y):
        epsilon = torch.randn_like(y)
        y = y + SIGMA * epsilon
        if not autograd:
            score = torch.func.grad(lambda u: network("density", weights, u).sum())(y)
        else:
            y.requires_grad_()
            s = network("density", weights, y).sum()
            (score,) = torch.autograd.grad(s, y, create_graph=True)
        return (SIGMA * score + epsilon).square().mean()

    def update(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    density, optimizer = make("density", 0)
    if "generator" not in case:
        density_loss = torch.compile(loss_of) if compiled else loss_of

        def step():
            rows = x[torch.randint(len(x), (batch,))]
            update(optimizer, density_loss(density, rows))

        return step

    frozen = [w.detach() for w in density]
    generated, dde_optimizer = make("density", 1)
    generator, optimizer = make("generator", 2)
    latents = case["generator"]["inputs"]

    def dde_loss(weights):
        with torch.no_grad():
            y = network("generator", generator, torch.randn(batch, latents))
        return loss_of(weights, y)

    def divergence(weights):
        y = network("generator", weights, torch.randn(batch, latents))
        y = y + SIGMA * torch.randn_like(y)
        return (network("density", generated, y) - network("density", frozen, y)).mean()

    if compiled:
        dde_loss, divergence = torch.compile(dde_loss), torch.compile(divergence)

    def step():
        for _ in range(case["dde_steps"]):
            update(dde_optimizer, dde_loss(generated))
        update(optimizer, divergence(generator))

    return step


def jax_step(case, x):
    """One step in JAX: all of it, Adam included, in one jitted function."""
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(x)
    batch, tree = case["batch"], jax.tree_util.tree_map

    def network(name, weights, y):
        activation = jax.nn.silu if name == "generator" else jax.nn.softplus
        return apply(case[name], weights, y, activation, jnp.concatenate)

    def loss_of(weights, y, key):
        epsilon = jax.random.normal(key, y.shape)
        score = jax.grad(lambda u: network("density", weights, u).sum())(y + SIGMA * epsilon)
        return jnp.square(SIGMA * score + epsilon).mean()

    def adam(state, gradients):
        weights, m, v, t = state
        t = t + 1
        m = tree(lambda a, g: BETA_1 * a + (1 - BETA_1) * g, m, gradients)
        v = tree(lambda a, g: BETA_2 * a + (1 - BETA_2) * g * g, v, gradients)
        rate = RATE * jnp.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
        weights = tree(lambda w, a, b: w - rate * a / (jnp.sqrt(b) + EPSILON), weights, m, v)
        return weights, m, v, t

    def start(name, seed):
        weights = [jnp.asarray(w) for w in first_weights(case[name], seed)]
        zeros = tree(jnp.zeros_like, weights)
        return weights, zeros, zeros, jnp.zeros(())

    frozen = start("density", 0)[0]

    def density_update(state, key):
        (density,) = state
        rows, noise = jax.random.split(key)
        y = x[jax.random.randint(rows, (batch,), 0, len(x))]
        return (adam(density, jax.grad(loss_of)(density[0], y, noise)),)

    def alternating_update(state, key):
        generated, generator = state
        for _ in range(case["dde_steps"]):
            key, latents, noise = jax.random.split(key, 3)
            z = jax.random.normal(latents, (batch, case["generator"]["inputs"]))
            y = network("generator", generator[0], z)
            generated = adam(generated, jax.grad(loss_of)(generated[0], y, noise))
        latents, noise = jax.random.split(key)
        z = jax.random.normal(latents, (batch, case["generator"]["inputs"]))

        def divergence(weights):
            y = network("generator", weights, z)
            y = y + SIGMA * jax.random.normal(noise, y.shape)
            return (network("density", generated[0], y) - network("density", frozen, y)).mean()

        return generated, adam(generator, jax.grad(divergence)(generator[0]))

    alternating = "generator" in case
    update = alternating_update if alternating else density_update
    state = [
        (start("density", 1), start("generator", 2)) if alternating else (start("density", 0),)
    ]

    @jax.jit
    def advance(state, count):
        return update(state, jax.random.fold_in(jax.random.key(0), count))

    count = [0]

    def step():
        count[0] += 1
        state[0] = jax.block_until_ready(advance(state[0], count[0]))

    return step
