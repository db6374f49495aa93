"""Pictures are whole PNG files of the right content; matplotlib stays out of `import tfdde`."""

import sys

import numpy as np
import pytest

from tfdde import plots

PNG = b"\x89PNG\r\n\x1a\n"


def is_whole(path):
    data = path.read_bytes()
    return data.startswith(PNG) and data[-8:-4] == b"IEND"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path):
    yield
    assert not list(tmp_path.glob(".*")), "a temporary file was left"


def test_density_beside_exact(tmp_path):
    line = np.linspace(-3, 3, 20)
    exact = -0.5 * (line[:, None] ** 2 + line**2) - np.log(2 * np.pi)
    path = tmp_path / "new" / "density.png"  # the folder is made
    plots.density_beside_exact(path, exact + 0.1, exact, (-3, 3), sigma=0.2, divergence=0.01)
    assert is_whole(path)
    with pytest.raises(ValueError, match=r"same shape, got \(20,\) and \(20, 20\)"):
        plots.density_beside_exact(path, exact[0], exact, (-3, 3), sigma=0.2)


@pytest.mark.parametrize("shape", [(2,), (8, 8, 1), (8, 8, 3)])
def test_samples_beside_real(tmp_path, rng, shape):
    path = tmp_path / "samples.png"
    # The numbers may differ, and tensors will do.
    plots.samples_beside_real(path, rng.random((5, *shape)), rng.random((30, *shape)), title="t")
    assert is_whole(path)


def test_samples_of_the_wrong_kind(tmp_path, rng):
    path = tmp_path / "samples.png"
    with pytest.raises(ValueError, match="rows of one shape"):
        plots.samples_beside_real(path, rng.random((5, 2)), rng.random((5, 3)))
    with pytest.raises(ValueError, match=r"got \(5, 3\)"):
        plots.samples_beside_real(path, rng.random((5, 3)), rng.random((5, 3)))
    assert not path.exists()


def test_grids(tmp_path, rng):
    path = tmp_path / "grid.png"
    plots.image_grid(path, rng.random((7, 8, 8, 1)), title="seven")
    assert is_whole(path)
    plots.interpolation_grid(path, rng.random((2, 5, 8, 8, 1)))
    assert is_whole(path)
    with pytest.raises(ValueError, match="lines, steps"):
        plots.interpolation_grid(path, rng.random((5, 8, 8, 1)))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        plots.image_grid(path, rng.random((5, 8, 8, 2)))


def test_tiles_are_in_reading_order():
    images = np.arange(1, 7)[:, None, None, None] / 10 * np.ones((6, 2, 2, 1))
    tiled = plots._tile(images, columns=3)[..., 0]
    assert tiled.shape == (8, 12)
    np.testing.assert_allclose(tiled[1::4, 1::4], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])


def test_loss_curves(tmp_path):
    log, path = tmp_path / "density.csv", tmp_path / "losses.png"
    logs = {"density": log, "generator": tmp_path / "generator.csv"}
    plots.loss_curves(path, logs)
    assert not path.exists()  # no log yet
    log.write_text("epoch,loss\n0,1.5\n1,1.25\n")
    table = plots.read_log(log)
    assert list(table) == ["epoch", "loss"]
    np.testing.assert_array_equal(table["loss"], [1.5, 1.25])
    plots.loss_curves(path, logs)
    assert is_whole(path)


def test_likelihood_by_level(tmp_path):
    path, sigmas = tmp_path / "sigma.png", [0.1, 0.5, 2.0]
    curves = {"training rows": [-1.0, -1.2, -3.0], "validation rows": [-2.0, -1.5, -3.0]}
    plots.likelihood_by_level(path, sigmas, curves, chosen=0.5)
    assert is_whole(path)


def test_histograms(tmp_path, rng):
    path = tmp_path / "log_density.png"
    values = {"training rows": rng.standard_normal(500), "test rows": rng.standard_normal(30) - 9}
    plots.histograms(path, values, "log-likelihood in nats")
    assert is_whole(path)
    plots.histograms(path, {"one value": [1.0, 1.0]}, "nats")
    assert is_whole(path)


def test_a_failure_leaves_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "grid.png"
    plots.image_grid(path, np.zeros((1, 4, 4, 1)))
    before = path.read_bytes()

    def fail(self, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.image_grid(path, np.ones((1, 4, 4, 1)))
    assert path.read_bytes() == before


def test_drawing_needs_matplotlib(tmp_path, monkeypatch):
    """All else does not, as a test of the whole package shows in a process of its own."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="matplotlib"):
        plots.image_grid(tmp_path / "x.png", np.zeros((1, 4, 4, 1)))


def test_marginals_and_pairs(tmp_path, rng):
    """Columns of any kind: far values, few values, and more columns than panels in a line."""
    data = rng.standard_normal((300, 6))
    data[0, 0], data[:, 1], data[:, 2] = 1e9, rng.integers(0, 4, 300), data[:, 0] * 1e-12
    data[:, 5] = 7.0
    names = ["a", "b", "c", r"$\no{math$", "f", "g"]
    samples = data[:50] + 0.1
    for number, draw in enumerate((plots.marginals, plots.pairs)):
        path = tmp_path / f"{number}.png"
        draw(path, data, samples, names)
        assert is_whole(path)
        draw(path, data[:, :2], samples[:, :2], names[:2])
        with pytest.raises(
            ValueError, match=r"`samples` must have shape \(rows, 6\), got \(50, 5\)"
        ):
            draw(path, data, samples[:, :5], names)
    with pytest.raises(ValueError, match=r"`names` must be of 2 columns or more, got \['a'\]"):
        plots.pairs(tmp_path / "2.png", data[:, :1], samples[:, :1], names[:1])


def test_bins_hold_one_value_each_or_most_of_the_values():
    values = np.repeat([0.0, 1.0, 5.0], [10, 20, 30])
    edges = plots._edges(values)
    assert np.histogram(values, edges)[0].tolist() == [10, 20, 30]
    far = np.append(np.linspace(0, 1, 999), 1e9)
    edges = plots._edges(far)
    assert edges[0] < 0.01 and 0.99 < edges[-1] < 1.01 and len(edges) == 31
