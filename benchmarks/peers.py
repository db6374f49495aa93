"""Density estimators that are fitted within a wall-clock budget, for ``likelihoods.py``.

Each is a function (x_train, x_validation, seconds, sigma, seed) -> (log_density, facts):

x_train, x_validation   clean float32 rows (m, n), in the data's own units
seconds                 wall-clock budget for choosing and fitting, without imports
sigma                   noise level in the data's units: the target is the density of
                        p * N(0, sigma**2 I); None: that of the rows as they are
log_density             maps float32 rows (m, n) to float64 (m,), in nats, normalised
facts                   dict of what was chosen, and the seconds it took

All work on standardised columns.  torch, scikit-learn and TensorFlow are imported by the
function that needs them, before its clock starts: their thread pools don't share a process.
"""

import functools
import itertools
import math
import time
import warnings

import numpy as np


class Clock:
    """Budget that starts now: of wall-clock time, unless ``now`` is replaced."""

    now = staticmethod(time.perf_counter)

    def __init__(self, seconds):
        self.seconds = seconds
        self.start = self.now()

    @property
    def elapsed(self):
        return self.now() - self.start

    @property
    def share(self):
        """Share of the budget that is spent, above 1 once it is exceeded."""
        return self.elapsed / self.seconds


class Scaler:
    """Standardise columns by the training rows' means and standard deviations."""

    def __init__(self, x):
        self.mean = x.mean(axis=0, dtype=np.float64)
        self.std = x.std(axis=0, dtype=np.float64)
        self.log_jacobian = -np.log(self.std).sum()

    def __call__(self, x):
        return ((x - self.mean) / self.std).astype(np.float32)


def _noisy(x, sigma, seed, part):
    """Return rows with N(0, sigma**2 I) added; the rows themselves if sigma is None."""
    if sigma is None:
        return x
    rng = np.random.default_rng([seed, part])
    return x + np.float32(sigma) * rng.standard_normal(x.shape, np.float32)


def kernel_log_density(rows, x, bandwidths):
    """Gaussian kernel density of ``rows`` at ``x`` for each bandwidth: float64 (bandwidths, m).

    The same as scikit-learn's ``KernelDensity``, whose tree takes one to two minutes for 10,000
    points and 50,000 rows where a matrix of distances takes seconds and serves all bandwidths.
    """
    n, out = rows.shape[1], np.empty((len(bandwidths), len(x)))
    centre = rows.mean(axis=0)  # distances lose fewest digits around it
    rows = (rows - centre).astype(np.float64)
    half_norms = 0.5 * np.square(rows).sum(axis=1)
    for i in range(0, len(x), 250):
        y = (x[i : i + 250] - centre).astype(np.float64)
        closeness = y @ rows.T - half_norms - 0.5 * np.square(y).sum(axis=1)[:, None]
        closest = closeness.max(axis=1, keepdims=True)
        closeness = (closeness - closest).astype(np.float32)
        for k, h in enumerate(bandwidths):
            total = np.exp(closeness / np.float32(h * h)).sum(axis=1, dtype=np.float64)
            out[k, i : i + 250] = np.log(total) + closest[:, 0] / h**2
    h = np.asarray(bandwidths)[:, None]
    return out - math.log(len(rows)) - n * np.log(h * math.sqrt(2 * math.pi))


def kde(x_train, x_validation, seconds, sigma, seed):
    """Gaussian kernel density; bandwidth by validation likelihood, grid refined twice."""
    clock = Clock(seconds)
    scale = Scaler(x_train)
    rows = scale(_noisy(x_train, sigma, seed, 1))
    # A subsample that leaves most of the budget unused even for 60,000 rows.
    held_out = scale(_noisy(x_validation, sigma, seed, 2))[:2_000]
    low, high = 0.01, 2.0
    for _ in range(3):
        grid = np.geomspace(low, high, 10)
        values = kernel_log_density(rows, held_out, grid).mean(axis=1)
        best = int(values.argmax())
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        if clock.share > 0.5:
            break
    bandwidth = float(grid[best])

    def log_density(x):
        return kernel_log_density(rows, scale(x), [bandwidth])[0] + scale.log_jacobian

    return log_density, {"bandwidth": bandwidth, "seconds": clock.elapsed}


def gaussian_mixture(x_train, x_validation, seconds, sigma, seed):
    """Gaussian mixture by EM; BIC chooses among full and diagonal covariances and their number.

    The number of components grows until the BIC has risen twice in a row; the rest of the budget
    is spent on further starts, five in all.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    warnings.simplefilter("ignore", ConvergenceWarning)  # EM is run in pieces
    clock = Clock(seconds)
    scale = Scaler(x_train)
    rows = scale(_noisy(x_train, sigma, seed, 1)).astype(np.float64)
    counts = (1, 2, 4, 8, 10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    lowest, best, fits = np.inf, None, 0
    for start in range(5):
        risen, last = {"full": 0, "diag": 0}, {"full": np.inf, "diag": np.inf}
        for components, kind in itertools.product(counts, risen):
            if risen[kind] >= 2 or components > len(rows) / 4 or (fits and clock.share >= 1):
                continue
            model = GaussianMixture(
                components,
                covariance_type=kind,
                warm_start=True,
                max_iter=5,
                random_state=seed + start,
            )
            for _ in range(60):  # pieces of EM, so that the budget can end it
                model.fit(rows)
                if model.converged_ or clock.share >= 1:
                    break
            bic = model.bic(rows)
            risen[kind] = risen[kind] + 1 if bic > last[kind] else 0
            last[kind] = bic
            fits += 1
            if bic < lowest:
                lowest, best = bic, model

    def log_density(x):
        return best.score_samples(scale(x).astype(np.float64)) + scale.log_jacobian

    return log_density, {
        "components": best.n_components,
        "covariance": best.covariance_type,
        "converged": bool(best.converged_),
        "fits": fits,
        "seconds": clock.elapsed,
    }


RESERVE = 3.0  # seconds of a budget, for log Z from a mixture base
SMALL = 5_000  # rows; with fewer, a flow overfits before its budget is spent
KEEP_BEST = 10_000  # rows; with fewer, a smaller DDE keeps its weights of the best held-out loss
MOVES = 5  # Monte Carlo moves at each level of the ladder; without any, log Z favours a poor fit


def _flow(build, learning_rate, data, seconds, sigma, seed):
    """Maximum likelihood by AdamW: warm-up and cosine over the budget, averaged weights.

    The average is evaluated on the validation rows thirty times, and the best one is kept.  On
    small data sets the budget is divided among several widths and levels of noise added to the
    standardised rows (Rothfuss et al. 2019, "Noise regularization"), with weight decay, of which
    validation chooses.

    Args:
        build: maps the hidden layers' width to an untrained zuko flow.
        data: x_train, x_validation.
    """
    import torch
    import torch._dynamo  # the optimizer would import it within the budget

    torch.manual_seed(seed)
    clock = Clock(seconds)
    x_train, x_validation = data
    scale = Scaler(x_train)
    rows = torch.from_numpy(scale(x_train))
    held_out = torch.from_numpy(scale(_noisy(x_validation, sigma, seed, 2)))
    noise = torch.from_numpy((np.float64(sigma or 0.0) / scale.std).astype(np.float32))
    small = len(rows) < SMALL
    settings = [(None, 0.0, 1e-6)]  # width (None: the default), noise, weight decay
    if small:
        settings = [(64, 0.0, 1e-2), (64, 0.1, 1e-2), (64, 0.2, 1e-2), (None, 0.2, 1e-2)]
    batch_size = min(512, max(32, len(rows) // 4))

    def likelihood(flow, x):
        with torch.no_grad():
            return torch.cat([flow().log_prob(c) for c in x.split(2_000)]).double()

    best, facts, total = -math.inf, {}, 0
    for k, (width, extra, decay) in enumerate(settings):
        torch.manual_seed(seed + k)
        flow = build(width)
        average = torch.optim.swa_utils.AveragedModel(
            flow, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        )
        optimizer = torch.optim.AdamW(flow.parameters(), learning_rate, weight_decay=decay)
        own = Clock((seconds - clock.elapsed) / (len(settings) - k))
        level = torch.sqrt(noise**2 + extra**2)
        steps, judged = 0, 0
        while True:
            done = own.share >= 1
            if done or own.share * 30 >= judged + 1:
                judged = int(own.share * 30)
                value = float(likelihood(average.module, held_out).mean())
                if value > best:
                    weights = {n: v.clone() for n, v in average.module.state_dict().items()}
                    best, kept = value, average.module
                    facts = {"noise": extra, "best_step": steps} if small else {}
            if done:
                break
            rate = 0.5 * (1 + math.cos(math.pi * min(own.share, 1))) * min(1, (steps + 1) / 200)
            optimizer.param_groups[0]["lr"] = learning_rate * rate
            index = torch.randint(len(rows), (batch_size,))
            x = rows[index] + level * torch.randn(batch_size, rows.shape[1])
            loss = -flow().log_prob(x).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
            average.update_parameters(flow)
            steps += 1
        total += steps
    kept.load_state_dict(weights)
    facts |= {
        "steps": total,
        "parameters": sum(p.numel() for p in kept.parameters()),
        "validation_log_likelihood": best + scale.log_jacobian,
        "seconds": clock.elapsed,
    }

    def log_density(x):
        return likelihood(kept, torch.from_numpy(scale(x))).numpy() + scale.log_jacobian

    return log_density, facts


# Of the flows: transforms, units of both hidden layers, learning rate.  The first is the default.
SETTINGS = {
    "spline_flow": [(4, 128, 2e-3), (4, 128, 5e-4), (2, 256, 2e-3), (6, 64, 2e-3)],
    "maf": [(5, 256, 1e-3), (5, 256, 3e-3), (10, 128, 1e-3), (5, 512, 1e-3)],
}


def spline_flow(x_train, x_validation, seconds, sigma, seed, setting=0):
    """Autoregressive neural spline flow (Durkan et al. 2019), from zuko: 8 bins."""
    import zuko

    n = x_train.shape[1]
    transforms, units, rate = SETTINGS["spline_flow"][setting]

    def build(width):
        width = width or units
        return zuko.flows.NSF(n, transforms=transforms, bins=8, hidden_features=(width, width))

    return _flow(build, rate, (x_train, x_validation), seconds, sigma, seed)


def maf(x_train, x_validation, seconds, sigma, seed, setting=0):
    """Masked autoregressive flow (Papamakarios et al. 2017), from zuko."""
    import zuko

    n = x_train.shape[1]
    transforms, units, rate = SETTINGS["maf"][setting]

    def build(width):
        width = width or units
        return zuko.flows.MAF(n, transforms=transforms, hidden_features=(width, width))

    return _flow(build, rate, (x_train, x_validation), seconds, sigma, seed)


def train_density(dde, rows, clock, seed, rate=2e-3, held_out=None):
    """Train a tfdde.DDE on rows (m, n) until the clock's budget is spent; return the steps.

    With held-out rows (k, n), it keeps the averaged weights that have the least loss on them.
    """
    import keras

    import tfdde

    dde.compile(
        keras.optimizers.Adam(rate, beta_2=0.99, use_ema=True, ema_momentum=0.99), jit_compile=True
    )
    steps, least, best = 0, math.inf, None
    if held_out is not None:
        held_out = np.resize(held_out, (4_096, rows.shape[1]))  # many draws of noise for each

    def at_batch_end(batch, logs):
        nonlocal steps, least, best
        steps = batch + 1
        if held_out is not None and steps % 25 == 0:
            trained = dde.get_weights()
            dde.optimizer.finalize_variable_values(dde.trainable_variables)
            loss = dde.evaluate(held_out, batch_size=len(held_out), verbose=0)
            if loss < least:
                least, best = loss, dde.get_weights()
            dde.set_weights(trained)
        share = min(clock.share, 1.0)
        warm = min(1.0, steps / 50)
        dde.optimizer.learning_rate = rate * warm * 0.5 * (1 + math.cos(math.pi * share))
        dde.stop_training = share >= 1

    dde.fit(
        tfdde.datasets.stream(rows, min(512, len(rows)), seed),
        steps_per_epoch=2**31,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=at_batch_end)],
    )
    if best is not None:
        dde.set_weights(best)
    return steps


def _ladder_seconds(evaluator, starts, levels, samples):
    """What the ladder will take, by its third level; the first two trace what it needs."""
    from tfdde.partition.ladder import Sampler

    sampler = Sampler(evaluator, starts, levels, by_score=True)
    links = sampler.links(samples, MOVES, np.random.default_rng(0))
    next(links), next(links)
    clock = Clock(math.inf)
    next(links)
    return clock.elapsed * len(levels)


def denoising(x_train, x_validation, seconds, sigma, seed, log_z_inside=False, base=None):
    """tfdde's DDE of all noise levels, normalised from its base or by the ladder.

    The budget is for training; log Z takes ``log_z_seconds`` more.  With ``log_z_inside``
    the ladder has 1,000 samples, or 4,000 in budgets of 300 s or more, with control variates from
    the score. Three of its levels are timed before the training, which ends so much earlier, unless
    the base is a mixture: log Z then comes from the base, for which three seconds are set aside.
    With sigma None, rows are standardised, and the normalised likelihood of the validation rows
    chooses the level.  Of fewer than 10,000 rows the network has 64 units a layer, and keeps the
    weights that have the least loss on the validation rows.  ``base`` is as of
    ``tfdde.recipes.table_density``.
    """
    import keras
    import tensorflow as tf

    import tfdde
    from tfdde.partition import ladder
    from tfdde.partition.from_above import confirmed
    from tfdde.partition.from_base import at_levels, from_base

    clock = Clock(seconds)
    keras.utils.set_random_seed(seed)
    scale = Scaler(x_train)
    if sigma is not None:  # isotropic noise in the data's own units
        scale.mean, scale.std, scale.log_jacobian = 0.0, 1.0, 0.0
    rows, held_out = scale(x_train), scale(x_validation)
    n = rows.shape[1]
    small = len(rows) < KEEP_BEST
    # Of standardised columns. What is thinner a mixture sees, but hardly a network.
    lowest = (0.05,) if small else (0.001, 0.01)
    for level in lowest if sigma is None else (sigma,):
        noise = tfdde.LogUniform(level, 8.0)
        settings = 64 if small else 256, 3
        dde = tfdde.recipes.table_density(rows, noise, *settings, seed=seed, base=base)
        if not dde.base.one_gaussian:
            break
    # Held-out rows first. A few dozen are too few for log Z, and so are 5,000 for small gaps.
    samples = 20_000 if n <= 10 else 5_000
    starts = np.concatenate([held_out, rows])[:samples]
    levels = ladder.ladder_levels(noise.minimum, noise.maximum, n)
    training = clock
    if log_z_inside:
        samples = 1_000 if seconds < 300 else 4_000
        one = dde.base.one_gaussian
        reserve = _ladder_seconds(dde.evaluator, starts, levels, samples) if one else RESERVE
        training = Clock(max(seconds - clock.elapsed - reserve, 0.1 * seconds))
    steps = train_density(dde, rows, training, seed, held_out=held_out if small else None)
    facts = {"steps": steps, "parameters": dde.network.count_params()}
    facts |= {"base": base, "base_components": dde.base.components}
    facts |= {"tree_components": sum(getattr(dde.base, "tree_sizes", ()))}
    start = clock.elapsed
    partitions = at_levels(
        len(levels),
        dde.evaluator,
        dde.proposal,
        starts,
        levels,
        samples=samples,
        moves=MOVES,
        seed=seed,
        by_score=log_z_inside,
    )
    partitions = confirmed(partitions, dde.evaluator, starts, levels, seed)

    def at_level(x, log_z):
        s = dde.log_density(x, log_z.sigma, normalized=False).numpy()
        return s.astype(np.float64) - log_z.value

    log_z = partitions[0]
    if sigma is None:
        usable = [z for z in partitions if z.trusted] or partitions
        likelihoods = [at_level(held_out[:5_000], z).mean() for z in usable]
        log_z = usable[int(np.argmax(likelihoods))]
        if not dde.base.one_gaussian:
            # The base itself, which train/tabular.py compares, too. Its log Z is 0.
            of_base = [
                dde.base(held_out[:5_000], tf.constant(z.sigma, tf.float32)).numpy().mean()
                for z in partitions
            ]
            if max(of_base) > max(likelihoods) + 0.1 or not log_z.trusted:
                dde.drop_correction()
                z = partitions[int(np.argmax(of_base))]
                log_z = from_base(dde.evaluator, dde.proposal, starts, z.sigma, samples, seed)
                facts["network"] = "left out"
    facts |= {
        "sigma": log_z.sigma,
        "log_z_method": log_z.method,
        "log_z": log_z.value,
        "log_z_standard_error": log_z.standard_error,
        "log_z_trusted": log_z.trusted,
        "log_z_seconds": clock.elapsed - start,
        "seconds": clock.elapsed,
    }
    return lambda x: at_level(scale(x), log_z) + scale.log_jacobian, facts


METHODS = {
    "tfdde": denoising,
    "kde": kde,
    "gaussian_mixture": gaussian_mixture,
    "spline_flow": spline_flow,
    "maf": maf,
    "tfdde_one_gaussian": functools.partial(denoising, base="gaussian"),
}


def fit_and_evaluate(method, x_train, x_validation, y, seconds, sigma, seed, options):
    """Fit a method by name; return its log-density at the rows ``y``, and the facts.

    With the option ``cpu`` the budget is of processor time, for cores that other programs share.
    """
    options = dict(options)
    if options.pop("cpu", False):
        Clock.now = staticmethod(time.process_time)
    log_density, facts = METHODS[method](x_train, x_validation, seconds, sigma, seed, **options)
    return log_density(y), facts
