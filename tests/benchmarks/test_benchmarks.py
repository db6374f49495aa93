"""The benchmarks' families have exact densities, and their estimators are normalised."""

import ast
import time
from pathlib import Path

import families
import likelihoods
import mutation
import numpy as np
import peers
import pytest
import serving
import table1
from scipy.special import logsumexp
from scipy.stats import multivariate_t, norm

from tfdde import metrics

ROOT = Path(__file__).parents[2]


def family(name, n):
    return likelihoods.make_family(f"{name}-{n}")


@pytest.mark.parametrize("name", ["mixture", "toys"])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_integrates_to_one(name, sigma):
    grid, cell = metrics.grid(-14, 14, 560)
    log_density = family(name, 2).log_density(grid, sigma)
    assert logsumexp(log_density) + np.log(cell) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", likelihoods.FAMILIES)
@pytest.mark.parametrize("n", [2, 8])
def test_is_the_blurred_density_of_the_samples(name, n):
    """E_x N(y; x, sigma**2 I) over samples x, at a sigma so large that the mean settles."""
    truth, sigma = family(name, n), 2.0
    x = truth.sample(200_000, seed=1).astype(float)
    assert truth.sample(2, seed=1).dtype == np.float32
    y = truth.sample(20, seed=2) + sigma * np.random.default_rng(3).standard_normal((20, n))
    square = ((y[:, None] - x) ** 2).sum(axis=-1)
    log_kernel = -square / (2 * sigma**2) - n / 2 * np.log(2 * np.pi * sigma**2)
    expected = logsumexp(log_kernel, axis=1) - np.log(len(x))
    kernel = np.exp(log_kernel - expected[:, None])
    error = kernel.std(axis=1) / np.sqrt(len(x))
    difference = truth.log_density(y, sigma) - expected
    assert (np.abs(difference) < 4.5 * error).all()
    assert error.max() < 0.05


@pytest.mark.parametrize("name", likelihoods.FAMILIES)
def test_small_noise_is_the_mean_over_larger(name):
    """log p_b(y) = log E p_a(y + c epsilon) with b**2 = a**2 + c**2, in 8 dimensions."""
    truth = family(name, 8)
    a, c = 0.3, 0.1
    y = truth.sample(4, seed=1) + a * np.random.default_rng(2).standard_normal((4, 8))
    noise = c * np.random.default_rng(3).standard_normal((10_000, 8))
    both = np.concatenate([noise, -noise])
    for row in y:
        log_density = truth.log_density(row + both, a)
        expected = truth.log_density(row[None], np.hypot(a, c))[0]
        w = np.exp(log_density - expected)
        assert abs(w.mean() - 1) < 5 * w.std() / np.sqrt(len(both))


def test_toys_are_independent_and_rotated():
    truth = family("toys", 16)
    np.testing.assert_allclose(truth.rotation @ truth.rotation.T, np.eye(16), atol=1e-12)
    z = truth.sample(50_000, seed=1) @ truth.rotation
    assert truth.toys[1] == truth.toys[5] == "two_spirals"
    # Which arm a point is on, in one spiral and in the other; and of radii, the correlation.
    radii = np.hypot(z[:, ::2], z[:, 1::2])
    correlation = np.corrcoef(np.concatenate([z, z**2, radii], axis=1), rowvar=False)
    between = np.abs(correlation)
    for k in range(8):  # within one toy it is what it is
        own = [2 * k, 2 * k + 1, 16 + 2 * k, 17 + 2 * k, 32 + k]
        between[np.ix_(own, own)] = 0
    assert between.max() < 5 / np.sqrt(50_000)


def blurred_by_quadrature(log_density, y, sigma, nodes):
    """log of the integral of p(y - sigma e) N(e; 0, I) de at rows y, by Gauss-Hermite sums."""
    e, w = np.polynomial.hermite_e.hermegauss(nodes)
    n = y.shape[1]
    noise = np.stack(np.meshgrid(*[e] * n, indexing="ij"), axis=-1).reshape(-1, n)
    log_w = sum(np.meshgrid(*[np.log(w / np.sqrt(2 * np.pi))] * n, indexing="ij")).ravel()
    return np.array([logsumexp(log_w + log_density(row - sigma * noise)) for row in y])


@pytest.mark.parametrize("n", [2, 5, 8])
def test_heavy_tails_without_noise_are_scipys(n):
    truth = families.HeavyTails(n, seed=3)
    x = np.concatenate([truth.sample(200, seed=1), 1e4 * np.eye(n), np.zeros((1, n))])
    t = (x.astype(float) - truth.mean) @ truth.rotation
    expected = sum(
        multivariate_t(shape=np.diag(truth.scales[block] ** 2), df=freedom).logpdf(t[:, block])
        for block, freedom in zip(truth.blocks, truth.freedom, strict=True)
    )
    np.testing.assert_allclose(truth.log_density(x, 0.0), expected, atol=1e-6)


@pytest.mark.parametrize("n, nodes", [(2, 80), (3, 40)])
@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_heavy_tails_by_quadrature_of_the_noise(n, nodes, sigma):
    truth = families.HeavyTails(n, seed=1)
    shape = truth.rotation * truth.scales**2 @ truth.rotation.T
    t = multivariate_t(truth.mean, shape, df=truth.freedom[0])
    y = truth.sample(5, seed=1) + sigma * np.random.default_rng(2).standard_normal((5, n))
    y[0] += 30.0
    expected = blurred_by_quadrature(t.logpdf, y, sigma, nodes)
    np.testing.assert_allclose(truth.log_density(y, sigma), expected, atol=1e-6)


def test_heavy_tails_are_far_together_and_not_all_at_once():
    truth = families.HeavyTails(8)
    t = (truth.sample(50_000, seed=1) - truth.mean) @ truth.rotation / truth.scales
    far = np.abs(t) > 5
    same, other = far[:, 0] & far[:, 1], far[:, 0] & far[:, 7]
    assert [len(block) for block in truth.blocks] == [4, 4] and truth.freedom == [3.0, 4.0]
    assert same.sum() > 0.2 * far[:, 0].sum() > 50
    assert other.sum() < 0.1 * far[:, 0].sum()


def chain_log_density(truth, x):
    """Of rows without noise, by the definition in the docstring."""
    log_p = norm.logpdf(x[:, 0])
    for k in range(1, x.shape[1]):
        before = x[:, k - 1]
        std = 0.2 + 0.4 / (1 + np.exp(-truth.d * before))
        log_p += norm.logpdf(x[:, k], truth.a * np.sin(truth.b * before + truth.c), std)
    return log_p


@pytest.mark.parametrize("n, nodes", [(2, 100), (3, 60)])
@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_chain_by_quadrature_of_the_noise(n, nodes, sigma):
    truth = families.Chain(n, seed=1)
    y = truth.sample(5, seed=1) + sigma * np.random.default_rng(2).standard_normal((5, n))
    y[0, 0] += 2.0
    expected = blurred_by_quadrature(lambda x: chain_log_density(truth, x), y, sigma, nodes)
    np.testing.assert_allclose(truth.log_density(y, sigma), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [0.03, 0.1, 1.0])
def test_the_grid_of_a_chain_is_fine_enough(seed, sigma):
    truth = families.Chain(21, seed)
    y = truth.sample(50, seed=1) + sigma * np.random.default_rng(2).standard_normal((50, 21))
    step = min(truth.STEP, 0.5 * sigma)
    finer = truth.log_density(y, sigma, step=step / 2)
    np.testing.assert_allclose(truth.log_density(y, sigma), finer, atol=1e-7)
    assert np.abs(truth.log_density(y, sigma, step=10 * step) - finer).max() > 1e-3


def test_chain_integrates_to_one():
    grid, cell = metrics.grid(-6, 6, 400)
    log_density = families.Chain(2).log_density(grid, 0.3)
    assert logsumexp(log_density) + np.log(cell) == pytest.approx(0, abs=1e-6)


def test_chain_refuses_what_its_grid_cannot_hold():
    truth = families.Chain(2)
    with pytest.raises(ValueError, match=r"`sigma` must be >= 0.02, got 0.01"):
        truth.log_density(np.zeros((1, 2)), 0.01)
    for far in ([0.0, 15.0], [np.nan, 0.0], [0.0, -1e6]):
        with pytest.raises(ValueError, match="`x` must have rows near the chain, got"):
            truth.log_density(np.array([[0.0, 0.0], far]), 0.1)


def test_odd_toys():
    with pytest.raises(ValueError, match="even.*got 3"):
        family("toys", 3)


@pytest.mark.parametrize("method", ["kde", "gaussian_mixture"])
def test_peers_are_normalised(method):
    truth = family("mixture", 2)
    x, held_out = truth.sample(600, seed=1), truth.sample(200, seed=2)
    log_density, facts = peers.METHODS[method](3 * x + 1, 3 * held_out + 1, 0.5, 0.3, 0)
    grid, cell = metrics.grid(-40, 42, 500)
    assert logsumexp(log_density(grid)) + np.log(cell) == pytest.approx(0, abs=1e-3)
    assert facts["seconds"] > 0


def test_budgets_can_be_of_processor_time(monkeypatch):
    monkeypatch.setattr(peers.Clock, "now", peers.Clock.now)  # restored at the end
    truth = family("mixture", 2)
    x, y = truth.sample(100, seed=1), truth.sample(50, seed=2)
    log_q, facts = peers.fit_and_evaluate("kde", x, x, y, 0.5, 0.3, 0, {"cpu": True})
    assert log_q.shape == (50,) and facts["bandwidth"] > 0
    clock = peers.Clock(1.0)
    time.sleep(0.5)
    assert clock.elapsed < 0.25


def test_kernel_density():
    """Against scikit-learn's; its tree's bounds lose digits where the density is tiny."""
    from sklearn.neighbors import KernelDensity

    rng = np.random.default_rng(0)
    rows, x = rng.standard_normal((2, 300, 5)).astype(np.float32)
    found = peers.kernel_log_density(rows, x, [0.2, 0.7])
    square = ((x[:, None].astype(float) - rows) ** 2).sum(axis=-1)
    for values, h in zip(found, (0.2, 0.7), strict=True):
        log_kernel = -square / (2 * h**2) - 2.5 * np.log(2 * np.pi * h**2)
        np.testing.assert_allclose(values, logsumexp(log_kernel, axis=1) - np.log(300), atol=1e-4)
        expected = KernelDensity(bandwidth=h).fit(rows).score_samples(x)
        bulk = expected > -20
        assert bulk.sum() > 200
        np.testing.assert_allclose(values[bulk], expected[bulk], atol=1e-3)


FAKE_ROWS = [
    {"name": "mixture-2, kde", "log_likelihood": -2.5, "standard_error": 0.1, "gap": 0.25}
    | {"gap_standard_error": 0.0625},
    {"name": "wine-0, maf", "log_likelihood": -3.0, "standard_error": 0.5},
    {"name": "wine-1, maf", "log_likelihood": -5.0, "standard_error": 0.5},
]


def test_tables():
    text = likelihoods.table(FAKE_ROWS)
    assert "| mixture-2 | gap to truth |  | 0.250 ± 0.062 |" in text
    assert "| wine | log-likelihood |  |  |  |  | -4.000 ± 1.000 |" in text  # of the splits
    row = {"name": "gas, tfdde", "log_likelihood": 8.0, "standard_error": 0.125, "facts": {}}
    assert "| tfdde, here |  | 8.00 ± 0.12 |  |  |" in table1.markdown([row])


def seeds_row(data, method, seed, gap, setting=0, seconds=60.0):
    row = {"data": data, "method": method, "seed": seed, "gap": gap, "setting": setting}
    return row | {"budget_seconds": seconds}


def test_the_best_setting_is_that_of_the_tuning_seeds():
    gaps = {0: (0.3, 0.5), 1: (0.2, 0.4), 2: (0.1, 0.9), 3: (0.4, 0.4)}
    rows = [
        seeds_row("tails-8", "maf", seed, gap, setting)
        for setting, pair in gaps.items()
        for seed, gap in zip((100, 101), pair, strict=True)
    ]
    others = [
        seeds_row("tails-8", "maf", 0, -9.0, 3),  # a reporting seed
        seeds_row("chain-8", "maf", 100, -9.0, 3),
        seeds_row("tails-8", "maf", 100, -9.0, 3, seconds=600.0),
    ]
    assert likelihoods.best_setting(rows + others, "tails-8", "maf", 60.0) == 1
    assert likelihoods.best_setting([], "tails-8", "kde", 60.0) == 0
    for some in (rows[:-1], rows[:-2], []):
        with pytest.raises(ValueError, match="`report` needs all 4 settings of maf on tails-8"):
            likelihoods.best_setting(some, "tails-8", "maf", 60.0)


def test_table_of_seeds_pairs_them():
    ours, theirs = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5, 2: 3.5, 3: 100.0}
    rows = [seeds_row("chain-8", "tfdde", *pair) for pair in ours.items()]
    rows += [seeds_row("chain-8", "maf", *pair) for pair in theirs.items()]
    rows += [seeds_row("chain-8", "maf", 100, 7.0), seeds_row("chain-8", "kde", 0, 0.25)]
    text = likelihoods.seeds_table(rows)
    assert "| chain-8 | 60 | mean | 2.000 ± 0.577 (3 seeds) | 0.250 (1 seed) |" in text
    paired = "| chain-8 | 60 | tfdde less it, paired |  | 0.750 (1 seed) |  |  | -0.500 ± 0.000"
    assert paired in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tune", "--seeds", "5"], "--seeds of tune must be >= 100, got 5"),
        (["report", "--seeds", "0", "100"], "--seeds of report must be < 100, got 100"),
        (["synthetic", "--seconds", "60", "600"], "several --seconds and --seeds are for tune"),
        (["tune", "--clock", "cpu"], "--seed, --again and --clock are not for tune"),
        (["real", "--only", "wine-0", "diamonds-0"], "--data-dir is needed for diamonds-0"),
    ],
)
def test_protocol_keeps_its_seeds_apart(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["likelihoods.py", *arguments])
    with pytest.raises(SystemExit):
        likelihoods.main()
    assert message in capsys.readouterr().err


def test_protocol_takes_turns_and_skips_what_is_there(monkeypatch):
    rows, order = [], []

    def measure(method, *data, **options):
        order.append((method, data[-1], options))
        return {"gap": 0.1 * options.get("setting", 0), "budget_seconds": 1.0}

    monkeypatch.setattr(likelihoods, "rows_of", lambda *a: (None,) * 5)
    monkeypatch.setattr(likelihoods, "measure", measure)
    monkeypatch.setattr(likelihoods, "read_rows", lambda file: rows)
    monkeypatch.setattr("record.add", lambda file, row: rows.append(row))
    likelihoods.run_seeds("tune", ["chain-8"], ["maf"], [1.0], [100])
    assert [options["setting"] for _, _, options in order] == [0, 1, 2, 3]
    order.clear()
    methods = ["tfdde", "maf", "kde"]
    likelihoods.run_seeds("report", ["chain-8"], methods, [1.0], [0, 1])
    assert [method for method, _, _ in order] == [*methods, "maf", "kde", "tfdde"]
    assert {str(o) for m, _, o in order if m == "tfdde"} == {"{'log_z_inside': True}"}
    assert {str(o) for m, _, o in order if m == "maf"} == {"{'setting': 0}"}
    order.clear()
    likelihoods.run_seeds("report", ["chain-8"], methods, [1.0], [0, 1, 2])
    assert [seed for _, seed, _ in order] == [2, 2, 2]


def test_latencies(monkeypatch):
    even = serving.summary(np.full(500, 2e-3), batch=64)
    assert even == {"batch": 64, "rows_per_second": 32_000, "interval": [32_000, 32_000]} | {
        "p50_us": 2000,
        "p99_us": 2000,
        "calls": 500,
    }
    # Ten blocks that are 1 or 3 ms: mean 2 ms, standard error 1/3 ms, t = 2.262.
    blocks = serving.summary(np.repeat([1e-3, 3e-3] * 5, 20), batch=1)
    assert blocks["rows_per_second"] == 500
    assert blocks["interval"] == [pytest.approx(1e3 / (2 + 2.262 / 3), abs=1), 803]
    slow = serving.summary(np.r_[np.full(98, 1e-5), 1e-3, 1e-3], batch=1)
    assert slow["p50_us"] == 10 and slow["p99_us"] == 1000
    monkeypatch.setattr(serving, "WARM_UP", 0.0)
    monkeypatch.setattr(serving, "MEASURED", 0.0)
    seconds = serving.timed(lambda: time.sleep(0.001))
    assert len(seconds) == serving.CALLS[0] and seconds.min() > 0.001
    rows = [{"name": "litert", "batches": [even | {"batch": 1, "p50_us": 6.31}]}]
    assert "| tfdde, LiteRT | 32,000 | 6.3 / 2,000 |  |  |  |  |" in serving.table(rows)


@pytest.mark.parametrize("module", mutation.TESTS)
def test_mutation_testing_knows_the_modules_and_their_tests(module):
    assert (ROOT / "tfdde" / f"{module}.py").is_file()
    for test in mutation.ids(module):
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        assert not name or name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
