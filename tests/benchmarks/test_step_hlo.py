"""benchmarks/step_hlo.py exports steps that make in JAX what they make in TensorFlow."""

import numpy as np
import pytest
import step_hlo

RESIDUAL = {"kind": "residual", "inputs": 2, "width": 8, "depth": 2, "outputs": 1}
CASES = {
    "density": {"density": RESIDUAL, "batch": 16},
    "alternating": {
        "density": RESIDUAL,
        "generator": RESIDUAL | {"outputs": 2},
        "batch": 16,
        "dde_steps": 2,
    },
}


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("hlo") / "step.npz"
    return path, step_hlo.export(path, CASES[request.param])


def test_the_file_has_all_variables_and_says_which_change(exported):
    path, losses = exported
    with np.load(path) as file:
        inputs = {name for name in file if name.startswith("input_")}
        places = file["aliases"]
        assert file["losses"].tolist() == losses
    assert places.shape[1] == 2
    assert places[:, 1].max() < len(inputs)
    assert places[:, 1].min() >= 1  # the batch stays
    assert len(set(places[:, 1])) == len(places)
    assert len(np.unique(losses, axis=0)) == step_hlo.CHECKED  # training goes on


def test_jax_makes_the_same_steps(exported):
    pytest.importorskip("jax")
    path, _ = exported
    step, losses = step_hlo.load(path)
    found = np.array([[float(loss) for loss in step()] for _ in losses])
    np.testing.assert_allclose(found, losses, rtol=1e-5)


def test_other_losses_are_refused(exported, tmp_path):
    pytest.importorskip("jax")
    with np.load(exported[0]) as file:
        arrays = dict(file)
    arrays["losses"] = arrays["losses"] * 1.001
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(SystemExit, match="differ from TensorFlow's"):
        step_hlo.measure(tmp_path / "other.npz", rounds=1)
