"""The densities and generators that the scripts, scikit-learn and the search over sigma train.

Each function returns models that are not compiled yet: optimizers are the caller's choice.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfdde import networks
from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.networks import convolutional, initial_weights
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.networks.independent_components import ROWS_PER_COLUMN
from tfdde.networks.normalization import row_dtype
from tfdde.noise import LogUniform, Noise
from tfdde.optimizers import FusedAdam
from tfdde.partition import from_above
from tfdde.tables.schema import Schema
from tfdde.utils.checks import check_rows, check_weights

BASES = "gaussian", "mixture", "tree"
MOST_COMPONENTS = 128  # of a mixture
# How the densities of tables are trained.
EPOCH_STEPS = 50  # at least, between two validations
STEPS_PER_CALL = 10  # of one compiled call, if they divide those of an epoch
VALIDATION_ROWS = 4_096  # noisy ones; few rows are repeated, each time with other noise
CONTRAST_WEIGHT, CONTRASTED = 3.5, 10_000  # for fewer rows than that, of many columns


def check_base(base: str | None) -> None:
    """Raise a ValueError unless ``table_density`` knows this ``base``."""
    if base is not None and base not in BASES:
        raise ValueError(f"`base` must be 'gaussian', 'mixture', 'tree' or None, got {base!r}.")


def table_density(
    x: Any,
    noise: Noise,
    width: int = 128,
    depth: int = 4,
    normalization: keras.layers.Normalization | Schema | None = None,
    seed: int | None = None,
    sample_weight: Any = None,
    base: str | None = None,
    contrast_weight: float | None = None,
) -> DDE:
    """Return the density that the benchmarks found best for tables.

    Its network is a residual MLP of SiLUs whose output is a product of mixtures of experts.
    Base and normalization are adapted to the rows, and the first layer starts at the rows'
    independent components if it has a unit for each of them and the rows are enough.

    >>> dde = tfdde.recipes.table_density(x, tfdde.LogUniform(0.1, 8.0), width=16, depth=1)
    >>> dde.compile("adam")
    >>> dde.score(x[:3]).shape
    TensorShape([3, 2])

    Args:
        x: training rows, shape (rows, n).
        noise: the noise levels; with ``LogUniform`` the network has an input for the level.
        width: units of each hidden layer.
        depth: number of residual layers.
        normalization: layer that standardises the columns, or their schema; None: they are taken
            as they are.
        seed: of noise and order of the rows; the network's weights are drawn by
            ``keras.utils.set_random_seed``.
        sample_weight: of the rows, shape (rows,), as ``DDE.fit`` takes them.
        base: what the network corrects: one "gaussian", or a "mixture" of at most 128 Gaussians
            with a covariance each, if held-out rows are likelier by it
            (``tfdde.networks.full_mixture``); or, if they are likelier by that, a "tree" of
            mixtures of pairs of columns (``tfdde.networks.TreeBase``). None: "tree" for 4 to 100
            columns with ``LogUniform`` noise, and one Gaussian for others.
        contrast_weight: of ``DDE``; None: 3.5 for fewer than 10,000 rows of 4 to 100 columns,
            where log Z may otherwise not be trusted at low noise, and 0 for others.

    Returns:
        A ``DDE`` that is not compiled yet.

    Raises:
        ValueError: wrong shape, NaN or infinity, fewer than two rows, bad weights, or another
            ``base``.
    """
    check_base(base)
    x = check_rows(x, "x", np.shape(x)[1:2] or (1,), dtype=row_dtype(normalization))
    weights = check_weights(sample_weight, len(x))
    n, levels = x.shape[1], isinstance(noise, LogUniform)
    network = networks.residual_mlp(n, width, depth, activation="silu", levels=levels, experts=4)
    rows = len(x) if weights is None else np.count_nonzero(weights)
    many_columns = levels and from_above.is_for(n)
    base = base or ("tree" if many_columns else "gaussian")
    kind = networks.TreeBase if base == "tree" else GaussianBase
    of_rows = kind(n, most_components=1 if base == "gaussian" else MOST_COMPONENTS)
    if contrast_weight is None:
        contrast_weight = CONTRAST_WEIGHT if many_columns and rows < CONTRASTED else 0.0
    dde = DDE(
        network,
        noise,
        of_rows,
        normalization,
        antithetic=True,
        seed=seed,
        contrast_weight=contrast_weight,
    )
    dde.adapt(x, weights)
    if n <= min(width, rows // ROWS_PER_COLUMN):
        dde.start_at_independent_components(x, weights)
    return dde


def paper_table_density(
    x: Any,
    noise: Noise,
    width: int = 64,
    depth: int = 25,
    normalization: keras.layers.Normalization | Schema | None = None,
    seed: int | None = None,
) -> DDE:
    """Return the paper's density of a table, a residual MLP, with a Gaussian base.

    Arguments, return value and errors are those of ``table_density``; ``noise`` has one level,
    as ``Constant`` and ``Decay`` have.
    """
    x = check_rows(x, "x", np.shape(x)[1:2] or (1,), dtype=row_dtype(normalization))
    n = x.shape[1]
    network = networks.residual_mlp(n, width, depth)
    dde = DDE(network, noise, GaussianBase(n), normalization, antithetic=True, seed=seed)
    dde.adapt(x)
    return dde


def toy_models(
    x: Any,
    noise: Noise,
    *,
    width: int = 32,
    depth: int = 25,
    generator_width: int = 32,
    generator_depth: int = 25,
    latent_dim: int = 2,
    scale: float = 1.0,
    dde_steps: int = 10,
    relative: bool = False,
    ratio: str = "denoising",
    forward: float = 0.0,
    one_stage: bool = False,
    level_power: float = 1.0,
    seed: int = 0,
) -> tuple[DDE, Generator]:
    """Return the density s_p of points in the plane, and the generator that is trained on it.

    With one noise level the generated density s_q has a network like that of s_p, as in
    Algorithm 1; with ``LogUniform`` noise it has a smaller one, which serves for the difference
    of s_q and s_p.

    Args:
        x: points, shape (rows, 2), which the Gaussian bases are adapted to.
        noise: the noise levels of both densities.
        width, depth: units and number of residual layers of the density.
        generator_width, generator_depth: the same of the generator.
        latent_dim: entries of a latent z.
        scale: size of the points, by which the networks divide them.
        dde_steps: updates of s_q for one of the generator.
        relative: whether s_q's network learns s_q - s_p.
        ratio, forward, one_stage: of ``Generator``.
        level_power: weight of a level sigma in the generator's loss is sigma to this power.
        seed: of noise and latents; the networks' weights are drawn by
            ``keras.utils.set_random_seed``.
    """
    many = isinstance(noise, LogUniform)

    def density_of(network: keras.Model, seed: int) -> DDE:
        base = GaussianBase(2)
        base.adapt(x)
        network = _rescaled(network, 1 / scale, 1.0)
        return DDE(network, noise, base, antithetic=True, time_weight=0.2, seed=seed)

    density = density_of(networks.residual_mlp(2, width, depth, levels=many), seed)
    if many:
        generated = networks.residual_mlp(2, 64, 4, activation="silu", levels=True, experts=2)
    else:
        generated = networks.residual_mlp(2, width, depth)
    network = networks.residual_mlp(
        latent_dim, generator_width, generator_depth, activation="silu", output_shape=2
    )
    generator = Generator(
        _rescaled(network, 1.0, scale),
        data_dde=density,
        generated_dde=density_of(generated, seed + 2),
        latent_dim=latent_dim,
        dde_steps=dde_steps,
        relative=relative,
        ratio=ratio,
        forward=forward,
        one_stage=one_stage,
        level_power=level_power,
        seed=seed + 3,
    )
    return density, generator


def _rescaled(network: keras.Model, inputs: float, outputs: float) -> keras.Model:
    """The network of ``inputs`` x, its output times ``outputs``."""
    if inputs == outputs == 1.0:
        return network
    x, *others = [keras.Input(i.shape[1:], name=i.name) for i in network.inputs]
    y = network([keras.layers.Rescaling(inputs)(x), *others] if others else x)
    return keras.Model([x, *others] if others else x, keras.layers.Rescaling(outputs)(y))


def image_models(
    x: Any,
    noise: Noise,
    *,
    kind: str = "conv",
    width: int = 32,
    depth: int = 2,
    activation: Any = "silu",
    latent_dim: int = 16,
    dde_steps: int = 1,
    ratio: str = "denoising",
    forward: float = 0.0,
    one_stage: bool = False,
    level_power: float = 2.0,
    seed: int = 0,
) -> tuple[DDE, Generator]:
    """Return the density s_p of images, and the generator that is trained on it.

    The generated density s_q has a network like that of s_p; with ``LogUniform`` noise, or if
    ``ratio`` is "logistic", it learns s_q - s_p.

    Args:
        x: images with pixels in [0, 1], shape (rows, height, width, channels).
        noise: the noise levels of both densities.
        kind: "conv" for convolutional networks; "residual" for residual MLPs, which suit images
            of some dozen pixels; "dense" for the paper's dense blocks, which start along the
            covariance and the principal components of the images.
        width: channels or units of a layer, of all three networks.
        depth: residual layers of a resolution, or layers of a dense block. With the logistic
            loss both convolutional networks are smaller, since steps are worth more than weights:
            they have half as many, and a dense layer of 2 ``width`` units. The log-ratio network
            has shifts of channels. That of s_p, which the generator then does not need, has half
            the width, and learns by time scores too, for its log Z.
        activation: of the densities' networks.
        latent_dim: entries of a latent z.
        dde_steps: updates of s_q for one of the generator.
        ratio, forward, one_stage: of ``Generator``.
        level_power: weight of a level sigma in the generator's loss is sigma to this power.
        seed: of noise and latents; the networks' weights are drawn by
            ``keras.utils.set_random_seed``.

    Raises:
        ValueError: another ``kind``.
    """
    if kind not in ("conv", "residual", "dense"):
        raise ValueError(f"`kind` must be 'conv', 'residual' or 'dense', got {kind!r}.")
    many, shape = isinstance(noise, LogUniform), np.shape(x)[1:]
    covariance = GaussianBase(shape)
    covariance.adapt(x)  # which takes seconds; both bases are copies of it

    def density_of(seed: int, log_ratio: bool = False) -> DDE:
        base = GaussianBase(shape)
        base.set_weights(covariance.get_weights())
        sizes: dict[str, Any] = {"activation": activation, "levels": many}
        time_weight = 0.0  # it would help to normalise s_p, which a generator does not need
        if kind == "conv":
            channels, layers = width, depth
            if ratio == "logistic":  # steps are worth more than weights
                layers = max(1, depth // 2)
                sizes["units"] = 2 * width
                if log_ratio:
                    sizes["shifts"] = "channel"
                else:
                    channels, time_weight = max(1, width // 2), 0.1
            network = convolutional.conv_density(shape, channels, layers, **sizes)
        elif kind == "residual":
            network = networks.residual_mlp(shape, width, depth, experts=4, **sizes)
            time_weight = 0.1
        else:
            network = networks.dense_block(shape, width, depth, **sizes)
            initial_weights.along_covariance(network, base, noise.sigma, seed)
        return DDE(network, noise, base, antithetic=True, time_weight=time_weight, seed=seed)

    density = density_of(seed)
    if kind == "conv":
        network = convolutional.conv_generator(latent_dim, shape, width, depth=2, modulated=True)
    elif kind == "residual":
        network = networks.residual_mlp(
            latent_dim,
            width,
            depth,
            output_shape=shape,
            activation=activation,
            output_activation="sigmoid",
        )
    else:
        network = networks.dense_block(
            latent_dim, width, depth, output_shape=shape, output_activation="sigmoid"
        )
        initial_weights.at_principal_components(network, x)
    generator = Generator(
        network,
        data_dde=density,
        generated_dde=density_of(seed + 1, log_ratio=ratio == "logistic"),
        latent_dim=latent_dim,
        dde_steps=dde_steps,
        relative=many or ratio == "logistic",
        ratio=ratio,
        forward=forward,
        one_stage=one_stage,
        level_power=level_power,
        seed=seed + 2,
    )
    return density, generator


def adam(learning_rate: float, steps: int, power: float = 0.5, **kwargs: Any) -> FusedAdam:
    """Return Adam for networks that follow one another.

    Its rate falls to 0 in ``steps`` steps, in proportion to the share of the steps that is left
    to the power ``power``; ``kwargs`` are of ``FusedAdam``.
    """
    schedule = keras.optimizers.schedules.PolynomialDecay(learning_rate, steps, 0.0, power)
    # Little momentum: what s_q and g follow is moving.
    return FusedAdam(schedule, beta_1=0.5, beta_2=0.99, **kwargs)
