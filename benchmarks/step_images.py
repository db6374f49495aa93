"""Two training steps of images, and the same steps in PyTorch.

For `step_time.py`: `tfdde_model` returns the model of a case, and `torch_step` a function without
arguments that makes one step of it. "density" is a denoising step of a density with the network of
`train/mnist.py --preset full`, on each image with two noises; "generator" is the one-stage step of
the preset quick, in which one pass through the generator g and the log-ratio network r serves the
updates of both. Both have the images and noise levels of the preset quick.

PyTorch's images are (rows, channels, height, width), kept in memory with the channels last, which
is the faster order on a CPU. A network is a list of weights in the order of Keras's.
"""

import json
import math
from pathlib import Path

import numpy as np
import step_peers

SHAPE, LATENTS, WIDTH = (28, 28, 1), 16, 32
PRESET = Path(__file__).parents[1] / "train" / "presets" / "mnist" / "quick.json"
SETTINGS = json.loads(PRESET.read_text())["arguments"]
LOW, HIGH, FORWARD = SETTINGS["sigma"], SETTINGS["sigma_max"], SETTINGS["forward"]
IMAGES = SETTINGS["batch_size"] // 2
CLIP, MOST_WEIGHT = 4.0, 4.0  # of the weights of g's samples, as tfdde.losses has them


def images(rows):
    return np.random.default_rng(0).random((rows, *SHAPE), np.float32)


def tfdde_model(kind):
    """Return the density or the generator, not compiled."""
    import tfdde

    logistic = kind == "generator"
    density, generator = tfdde.recipes.image_models(
        images(1_000),
        tfdde.LogUniform(LOW, HIGH),
        width=WIDTH,
        latent_dim=LATENTS,
        activation=SETTINGS["activation"],
        dde_steps=SETTINGS["dde_steps"],
        ratio="logistic" if logistic else "denoising",
        forward=FORWARD if logistic else 0.0,
        one_stage=logistic,
        level_power=1.0,
        seed=0,
    )
    return density if kind == "density" else generator


def shapes_of(name):
    """Return the shapes of the weights of "density", "log-ratio" or "generator", as Keras's."""
    w, pixels = WIDTH, 7 * 7  # pixels at the lowest resolution
    if name == "generator":
        shapes = [(LATENTS, 8 * w), (8 * w,), (8 * w, pixels * 2 * w), (pixels * 2 * w,)]
        kernels = [(3, 3, 2 * w, 2 * w)] * 2
        kernels += [(4, 4, w, 2 * w), (4, 4, 1, w)]  # the transposed ones: their inputs come last
        for kernel in kernels:
            residual = kernel[0] == 3
            channels = kernel[2 if residual else 3]
            style = [(LATENTS, channels), (channels,)]
            shapes += [*style, (channels,), *style, kernel, kernel[3:] if residual else kernel[2:3]]
        return shapes
    density = name == "density"
    units, residual = (256, 2) if density else (2 * w, 1)
    shapes = [(1, w), (w,)]
    kernels = [(4, 4, 1, w), (4, 4, w, 2 * w), *[(3, 3, 2 * w, 2 * w)] * residual]
    for k, kernel in enumerate(kernels):
        shift = kernel[-1] * ((14 * 14 if k == 0 else pixels) if density else 1)
        shapes += [(w, shift), kernel, kernel[-1:]]
    return [*shapes, (pixels * 2 * w + w, units), (units,), (units, 1)]


def torch_weights(weights):
    """Convert the weights of a Keras network: its kernels (height, width, ...) come last."""
    import torch

    last = torch.channels_last
    return [
        torch.from_numpy(np.ascontiguousarray(w.transpose(3, 2, 0, 1))).contiguous(
            memory_format=last
        )
        if w.ndim == 4
        else torch.from_numpy(np.ascontiguousarray(w))
        for w in weights
    ]


def first_weights(name, seed):
    """Return weights of about the size of Keras's first ones."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal(s).astype(np.float32) / math.sqrt(max(1, math.prod(s[:-1])))
        for s in shapes_of(name)
    ]


def first_base():
    """Return mean, axes and variances of a Gaussian base of images."""
    n = math.prod(SHAPE)
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.standard_normal((n, n)))[0].astype(np.float32)
    return [np.full(n, 0.5, np.float32), axes, np.full(n, 1 / 12, np.float32)]


def critic(weights, x, level):
    """Apply a network like `conv_density`: (rows, 1, 28, 28), (rows, 1) -> (rows,)."""
    import torch
    from torch.nn.functional import conv2d, silu

    kernel, offset, *layers, wide, wide_offset, last = weights
    features = silu(level @ kernel + offset)
    h = x
    for shift, kernel, offset in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        halves = kernel.shape[-1] == 4
        f = conv2d(h, kernel, offset, stride=2 if halves else 1, padding=1)
        rows, channels, height, width = f.shape
        add = features @ shift
        if shift.shape[1] == channels:
            add = add.reshape(rows, channels, 1, 1)
        else:
            add = add.reshape(rows, height, width, channels).permute(0, 3, 1, 2)
        f = silu(f + add)
        h = f if halves else h + f
    h = h.permute(0, 2, 3, 1).reshape(len(h), -1)
    return (silu(torch.cat([h, features], 1) @ wide + wide_offset) @ last)[:, 0]


def generate(weights, z):
    """Apply a network like the modulated `conv_generator`: (rows, 16) -> (rows, 1, 28, 28)."""
    from torch import rsqrt, sigmoid
    from torch.nn.functional import conv2d, conv_transpose2d, silu

    a, b, c, d, *rest = weights
    first, second, middle, last = (rest[k : k + 7] for k in range(0, len(rest), 7))

    def modulated(h, scale, one, gain, shift, zero):
        h = h * rsqrt((h * h).mean(dim=1, keepdim=True) + 1e-6) * gain[:, None, None]
        return h * (z @ scale + one)[:, :, None, None] + (z @ shift + zero)[:, :, None, None]

    h = silu(silu(z @ a + b) @ c + d)
    h = h.reshape(len(z), 7, 7, 2 * WIDTH).permute(0, 3, 1, 2)
    for *style, kernel, bias in (first, second):
        h = h + silu(conv2d(modulated(h, *style), kernel, bias, padding=1))
    *style, kernel, bias = middle
    h = silu(conv_transpose2d(modulated(h, *style), kernel, bias, stride=2, padding=1))
    *style, kernel, bias = last
    return sigmoid(conv_transpose2d(modulated(h, *style), kernel, bias, stride=2, padding=1))


def corrected(weights, base, x, sigma):
    """Return the network's part of the density s(x, sigma), or the log-ratio."""
    mean, _, variances = base
    scale = (variances.mean() + sigma.square()).sqrt()[:, None, None, None]
    low, high = math.log(LOW), math.log(HIGH)
    level = (2.0 * sigma.log() - (low + high)) / (high - low)
    return critic(weights, (x - mean.reshape(1, 1, *SHAPE[:2])) / scale, level[:, None])


def log_density(weights, base, x, sigma):
    """Return s(x, sigma): the network's part and the log-density of the Gaussian base."""
    mean, axes, variances = base
    widths = variances + sigma.square()[:, None]
    u = (x.reshape(len(x), -1) - mean) @ axes
    square = (u.square() / widths).sum(1)
    return corrected(weights, base, x, sigma) - 0.5 * ((2 * math.pi * widths).log().sum(1) + square)


def density_loss(weights, base, x, epsilon, sigma, autograd=True):
    """Return the mean loss of images, each with the noise epsilon and with -epsilon."""
    import torch

    x, sigma = torch.cat([x, x]), torch.cat([sigma, sigma])
    epsilon = torch.cat([epsilon, -epsilon])
    wide = sigma[:, None, None, None]
    y = x + wide * epsilon
    if autograd:
        y.requires_grad_()
        (score,) = torch.autograd.grad(
            log_density(weights, base, y, sigma).sum(), y, create_graph=True
        )
    else:
        score = torch.func.grad(lambda u: log_density(weights, base, u, sigma).sum())(y)
    return (wide * score + epsilon).square().mean()


def tell_apart(weights, base, x, noisy, noise, sigma):
    """Return the logistic loss of r, what g descends by, and its factors of r's slopes.

    Args:
        weights, base: of r.
        x: images, and ``noise`` to add to them.
        noisy: as many samples, with noise.
        sigma: noise levels of both.
    """
    import torch
    from torch.nn.functional import softplus

    both = torch.cat([x + noise, noisy])
    at_data, at_samples = corrected(weights, base, both, torch.cat([sigma, sigma])).chunk(2)
    loss = softplus(torch.cat([at_data, -at_samples])).mean() / math.log(2.0)
    r = at_samples.detach()
    ratio = (-r).clamp(-CLIP, CLIP).exp()
    w = (1.0 - FORWARD + FORWARD * (ratio / ratio.mean()).clamp(max=MOST_WEIGHT)) * (sigma / LOW)
    into = -torch.sigmoid(-r) / (math.log(2.0) * 2 * len(x))  # d loss / d r of the samples
    return loss, (w * r).mean(), w / (into * len(x))


def torch_step(case, x, compiled=False, autograd=True):
    """One step in PyTorch, eager or with the networks and losses compiled by torch.compile."""
    import torch

    compile_ = torch.compile if compiled else (lambda function: function)
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    base, count = [torch.from_numpy(b) for b in first_base()], case["batch"]

    def make(name, seed):
        weights = [w.requires_grad_() for w in torch_weights(first_weights(name, seed))]
        betas = (step_peers.BETA_1, step_peers.BETA_2)
        adam = torch.optim.Adam(weights, step_peers.RATE, betas, step_peers.EPSILON, fused=True)
        return weights, adam

    def draw():
        share = (torch.arange(count) / count + torch.rand(())) % 1.0
        sigma = LOW * (HIGH / LOW) ** share
        return x[torch.randint(len(x), (count,))], sigma

    if case["images"] == "density":
        weights, optimizer = make("density", 0)
        loss_of = compile_(density_loss)

        def step():
            rows, sigma = draw()
            loss = loss_of(weights, base, rows, torch.randn_like(rows), sigma, autograd)
            optimizer.zero_grad()
            loss.backward(inputs=weights)
            optimizer.step()

        return step

    r, r_optimizer = make("log-ratio", 0)
    g, g_optimizer = make("generator", 1)
    one_stage = one_stage_step(compile_(generate), compile_(tell_apart))

    def step():
        rows, sigma = draw()
        epsilon = torch.randn(2 * count, *rows.shape[1:])
        _, gradients = one_stage(g, r, base, rows, torch.randn(count, LATENTS), epsilon, sigma)
        for weights, values, adam in zip(
            (g, r), gradients, (g_optimizer, r_optimizer), strict=True
        ):
            for weight, value in zip(weights, values, strict=True):
                weight.grad = value
            adam.step()

    return step


def one_stage_step(generate, tell_apart):
    """Return the function that computes losses and gradients of g and r, by these parts."""
    import torch

    def one_stage(g, r, base, x, z, epsilon, sigma):
        noise = torch.cat([sigma, sigma])[:, None, None, None] * epsilon
        noise, noise_of_samples = noise.chunk(2)
        y = generate(g, z)
        noisy = (y.detach() + noise_of_samples).requires_grad_()
        loss, divergence, factors = tell_apart(r, base, x, noisy, noise, sigma)
        *gradients, slopes = torch.autograd.grad(loss, [*r, noisy])
        of_g = torch.autograd.grad(y, g, factors[:, None, None, None] * slopes)
        return (divergence, loss), (of_g, gradients)

    return one_stage
