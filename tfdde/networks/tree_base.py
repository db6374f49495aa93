"""A base that may be a tree of Gaussian mixtures."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.networks import full_mixture, mixture_tree
from tfdde.networks.blurred_rows import BlurredRows
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.networks.layers import log_sum_exp
from tfdde.networks.mixture_tree import LOG_2_PI, MixtureTree
from tfdde.utils.checks import check_integer

PREFIX = "tree_"  # of the names in files


@keras.saving.register_keras_serializable(package="tfdde")
class TreeBase(GaussianBase):
    """A ``GaussianBase`` that ``adapt`` also tries a tree of Gaussian mixtures for.

    Columns of tables often depend on few others, each of them on one above all. In a Chow-Liu tree
    the density of a coordinate given its parent is that of a mixture of Gaussians of the two, over
    the mixture's marginal (``tfdde.networks.mixture_tree``). Coordinates are the columns, or
    directions along which the rows are independent. So rows along curves in pairs of columns need a
    few components for each pair, where a mixture of all columns needs one for each combination.

    At each noise level the base is the tree of the blurred pairs. It is normalised, and samples of
    it are drawn directly, but it is not quite the blurred density of its lowest level: the network
    corrects that, too. ``adapt`` takes the tree if held-out rows are clearly likelier by it than by
    the base it would otherwise be. Rows with heavy tails keep the mixture for those.

    >>> first = np.random.default_rng(0).normal(size=(5_000, 1))
    >>> x = np.hstack([first, first**2])  # a parabola
    >>> base = tfdde.networks.TreeBase(2, most_components=8)
    >>> base.adapt(x, sigma=0.1)
    >>> base.one_gaussian, len(base.tree_sizes)
    (False, 2)

    Args:
        input_shape, most_components, kwargs: as of ``GaussianBase``; in a tree a coordinate has at
            most 64 components.
        tree_sizes: create the variables of a tree with so many components for each coordinate, for
            loading from files; ``adapt`` decides on its own.

    Attributes:
        tree_sizes: Gaussians of each coordinate of the tree, () if there is none.
    """

    def __init__(
        self,
        input_shape: int | tuple[int, ...],
        most_components: int = 1,
        tree_sizes: tuple[int, ...] = (),
        **kwargs: Any,
    ):
        super().__init__(input_shape, most_components=most_components, **kwargs)
        self._tree: dict[str, keras.Variable] = {}
        self.tree_sizes: tuple[int, ...] = ()
        if tree_sizes:
            self._add_tree(tuple(check_integer(size, "tree_sizes") for size in tree_sizes))

    @property
    def one_gaussian(self) -> bool:
        return not self._tree and super().one_gaussian

    @property
    def kind(self) -> tuple[int | bool, ...]:
        return *super().kind, *self.tree_sizes

    def _add_tree(self, sizes: tuple[int, ...]) -> None:
        """Create the variables of a tree, unless they are there."""
        if sizes == self.tree_sizes:
            return
        self._drop_tree()
        n, k = math.prod(self.row_shape), sum(sizes)
        shapes = {
            "centre": (n,),
            "axes": (n, n),
            "parents": (n, n),
            "weights": (k,),
            "means": (2, k),
            "covariances": (4, k),
        }
        self.tree_sizes = sizes
        self._tree = {
            name: self.add_weight(
                shape=shape, initializer="ones", trainable=False, name=PREFIX + name
            )
            for name, shape in shapes.items()
        }

    def _drop_tree(self) -> None:
        for variable in self._tree.values():
            self._untrack_variable(variable)
        self._tree, self.tree_sizes = {}, ()

    def _fit(self, blurred: BlurredRows) -> Any:
        mixture, held_out = full_mixture.fit_if_it_suffices(blurred, self.most_components)
        return mixture_tree.fit_likeliest(blurred, self.most_components, held_out) or mixture

    def _use(self, mixture: Any) -> None:
        if not isinstance(mixture, MixtureTree):
            self._drop_tree()
            super()._use(mixture)
            return
        super()._use(None)
        self._add_tree(tuple(mixture.sizes.tolist()))
        for name, variable in self._tree.items():
            variable.assign(getattr(mixture, name))

    def call(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """As ``GaussianBase.call``; with one sigma also of a tree by matrix products."""
        if not self._tree:
            return super().call(x, sigma)
        centre, axes, parents, weights, means, covariances = (
            tf.convert_to_tensor(v) for v in self._tree.values()
        )
        one_level = sigma.shape.rank == 0
        noise = tf.square(sigma if one_level else sigma[:, None])
        owners = np.repeat(np.arange(len(self.tree_sizes)), self.tree_sizes)
        of_parent, slope, variance = _with_noise(
            covariances, noise, tf.gather(tf.reduce_sum(parents, axis=0), owners)
        )
        # Directions of each component's coordinate and its parent, (n, k).
        along, along_parent = (tf.gather(a, owners, axis=1) for a in (axes, axes @ parents))
        x = tf.nn.bias_add(tf.reshape(x, (-1, len(self.tree_sizes))), -centre)
        if one_level:
            marginal = _log_normal_along(x, along_parent, means[1], of_parent)
            means = means[0] - slope * means[1]
            own = _log_normal_along(x, along - slope * along_parent, means, variance)
        else:
            far = tf.matmul(x, along_parent) - means[1]
            marginal = _log_normal(far, of_parent)
            own = _log_normal(tf.matmul(x, along) - means[0] - slope * far, variance)
        marginal = tf.nn.bias_add(marginal, tf.math.log(weights))
        # TFLite lacks the gradient of a sum whose terms might have different shapes.
        logs, of_parents = (self._totals(a) for a in (tf.add_n([marginal, own]), marginal))
        return tf.add_n([logs, -of_parents])

    def _totals(self, logs: tf.Tensor) -> tf.Tensor:
        """Sum over coordinates of the log of the components' sum: (batch, k) -> (batch,)."""
        sizes, counts = (a.tolist() for a in np.unique(self.tree_sizes, return_counts=True))
        parts = tf.split(logs, [a * b for a, b in zip(sizes, counts, strict=True)], axis=1)
        totals = [
            tf.matmul(
                tf.reshape(log_sum_exp(tf.reshape(part, (-1, size))), (-1, count)),
                tf.ones((count, 1)),
            )
            for part, size, count in zip(parts, sizes, counts, strict=True)
        ]
        return tf.squeeze(tf.add_n(totals), axis=-1)

    @property
    def tree(self) -> MixtureTree | None:
        """The tree in use, or None."""
        if not self._tree:
            return None
        arrays = {name: v.numpy().astype(np.float64) for name, v in self._tree.items()}
        return MixtureTree(**arrays, sizes=np.array(self.tree_sizes))

    def sample(self, count: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
        """As ``GaussianBase.sample``."""
        if (tree := self.tree) is None:
            return super().sample(count, sigma, rng)
        return tree.sample(count, sigma, rng).astype(np.float32)

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Write the Gaussian, and the mixture or the tree if it is in use."""
        super().save_own_variables(store)
        if self._tree:
            store[PREFIX + "sizes"] = np.array(self.tree_sizes)
        for name, variable in self._tree.items():
            store[PREFIX + name] = variable.numpy()

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Read what ``save_own_variables`` wrote."""
        names = [str(name) for name in store.keys()]  # noqa: SIM118  # a file's is no dict
        of_tree = [name for name in names if name.startswith(PREFIX)]
        super().load_own_variables({k: store[k] for k in names if k not in of_tree})
        if not of_tree:
            self._drop_tree()
            return
        self._add_tree(tuple(np.array(store[PREFIX + "sizes"]).tolist()))
        for name, variable in self._tree.items():
            variable.assign(store[PREFIX + name])

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self._tree:
            config["tree_sizes"] = self.tree_sizes
        return config


def _with_noise(
    covariances: tf.Tensor, noise: tf.Tensor, has_parent: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """``MixtureTree.conditionals`` for noise of a variance, () or (batch, 1)."""
    variance, of_parent, covariance, determinant = tf.unstack(covariances)
    of_parents_noise = noise * has_parent
    determinant += of_parents_noise * (variance + noise) + noise * of_parent
    of_parent += of_parents_noise
    return of_parent, covariance / of_parent, determinant / of_parent


def _log_normal_along(
    x: tf.Tensor, along: tf.Tensor, means: tf.Tensor, variances: tf.Tensor
) -> tf.Tensor:
    """Log-densities of normals along directions (n, k), by one product and two biases."""
    precise = 1.0 / tf.sqrt(variances)
    scaled = tf.nn.bias_add(tf.matmul(x, along * precise), -means * precise)
    return tf.nn.bias_add(-0.5 * tf.square(scaled), tf.math.log(precise) - 0.5 * LOG_2_PI)


def _log_normal(far: tf.Tensor, variances: tf.Tensor) -> tf.Tensor:
    """Log-densities at distances (batch, k) from the means: (batch, k)."""
    return -0.5 * (tf.square(far) / variances + tf.math.log(variances) + LOG_2_PI)
