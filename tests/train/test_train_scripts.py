"""The training scripts as a user runs them, tiny: files, errors, Ctrl-C and --resume."""

import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import keras
import mnist
import numpy as np
import pytest
import tabular
import toy as toy_script

import tfdde
from tfdde import runs
from tfdde.serving import metadata

ROOT = Path(__file__).parents[2]
# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

IMAGES = [
    "--width=8",
    "--depth=2",
    "--batch-size=16",
    "--dde-steps=2",
    "--no-one-stage",
    "--no-jit",
]
TOY = [*IMAGES, "--generator-width=8", "--generator-depth=2"]


@pytest.fixture
def toy(monkeypatch):
    """The script, with a small pool of points and short epochs."""
    monkeypatch.setattr(toy_script, "POOL", 1000)
    monkeypatch.setattr(toy_script, "EPOCH", 4)
    return toy_script


@pytest.fixture
def idx_folder(tmp_path):
    """The four files of MNIST, with 40 and 20 images of noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for part, rows in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as f:
            f.write(struct.pack(">4i", 2051, rows, 28, 28) + images.tobytes())
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb") as f:
            f.write(struct.pack(">2i", 2049, rows) + bytes(rows))
    return folder


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def data_hash(run, density):
    """As an export of the run tells it."""
    errors = {"log_density": 0.0, "log_density_nats": 0.0}
    about = metadata.facts(density, None, {}, errors, 1e-5, run)
    assert f"Checksum of the data: {about['data_hash']}." in metadata.card(about)
    return about["data_hash"]


EXPECTED = {
    "config.json",
    "checkpoint/density.weights.h5",
    "checkpoint/generator.weights.h5",
    "density.csv",
    "density.keras",
    "generator.csv",
    "generator.keras",
    "losses.png",
    "samples.png",
}


@pytest.mark.parametrize("dataset, high", [("checkerboard", 0.2), ("distant_gaussians", 9.0)])
def test_toy(toy, tmp_path, capsys, dataset, high):
    """Of one level, and of many on a toy whose networks see it rescaled."""
    folder = tmp_path / "run"
    args = [*TOY, f"--dataset={dataset}", f"--sigma-max={high}", "--steps=6", "--generator-steps=5"]
    args += [f"--output={folder}"]
    assert toy.main(args) == 0
    assert files(folder) >= EXPECTED | {"density.png"}
    kl = re.search(r"KL\(exact \|\| normalised DDE\) = (\S+) nats", capsys.readouterr().out)
    assert np.isfinite(float(kl[1]))
    generator = keras.saving.load_model(folder / "generator.keras")
    assert generator.sample(3, seed=1).shape == (3, 2)
    density = keras.saving.load_model(folder / "density.keras")
    assert density.log_density(np.zeros((3, 2)), normalized=False).shape == (3,)
    points = tfdde.datasets.sample_toy(dataset, toy.POOL, seed=0)
    assert data_hash(folder, density) == f"crc32:{zlib.crc32(points.tobytes()):08x}"

    # A second run does not overwrite the first, and another one is not its continuation.
    assert toy.main(args) == 2
    assert "add --resume" in capsys.readouterr().err
    assert toy.main([*args, "--width=9", "--resume"]) == 2
    assert "started with width = 8, not 9" in capsys.readouterr().err


def channels(network):
    """Of its first convolution."""
    return next(n.filters for n in network.layers if isinstance(n, keras.layers.Conv2D))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnist", ["--networks=dense", "--depth=2"]),
        ("mnist", ["--dde-steps=2", "--no-one-stage"]),
        ("mnist", ["--paper", "--depth=2"]),
        ("mnist", ["--sigma-max=0.05"]),
        ("mnist", ["--preset=full", "--sigma-max=0.25"]),
        ("fashion_mnist", []),
        ("stacked_mnist", []),
    ],
)
def test_images(tmp_path, idx_folder, name, options):
    folder = tmp_path / "run"
    args = ["--width=8", "--batch-size=16", "--no-jit", "--depth=1", "--no-log-z"]
    args += ["--steps=3", "--generator-steps=3", f"--data-dir={idx_folder}", f"--output={folder}"]
    # Fashion-MNIST and stacked MNIST have the preset's own; the choice traces both densities again.
    args += ["--candidates=1"] * bool(options)
    kwargs = {} if name == "mnist" else {"dataset": name}
    assert mnist.main([*args, *options], **kwargs) == 0
    assert files(folder) >= EXPECTED | {"interpolation.png"}
    density = keras.saving.load_model(folder / "density.keras")
    sigmas = {"--paper": 0.5, "--preset=full": 0.25}
    assert density.noise.sigma == next((v for k, v in sigmas.items() if k in options), 0.05)
    generator = keras.saving.load_model(folder / "generator.keras")
    if not options:  # s_p, which the generator does not need, has half the channels
        s_p, r = generator.data_dde.network, generator.generated_dde.network
        assert generator.one_stage and [channels(n) for n in (s_p, r)] == [4, 8]
        assert density.time_weight == 0.1
    images = generator.sample(2, seed=1).numpy()
    assert images.shape == (2, 28, 28, 3 if name == "stacked_mnist" else 1)
    assert images.min() >= 0 and images.max() <= 1

    loader = getattr(tfdde.datasets, f"load_{name}")
    checksum = zlib.crc32(loader(idx_folder).x_train.tobytes())
    assert data_hash(folder, density) == f"crc32:{checksum:08x}"


@pytest.fixture
def bare(monkeypatch):
    """A machine where MNIST can't be had."""

    def nowhere(name):
        raise FileNotFoundError(f"No {name} data.")

    monkeypatch.delenv("TFDDE_DATA_DIR", raising=False)
    monkeypatch.setattr("tfdde.datasets.images._from_tfds", nowhere)


@pytest.mark.usefixtures("bare")
def test_digits_on_a_bare_machine(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    monkeypatch.setitem(mnist.LOG_Z, "residual", (400, 5))
    args = ["--width=16", "--depth=1", "--no-jit", "--steps=100", "--generator-steps=6"]
    assert mnist.main([*args, "--candidates=2", f"--output={folder}"]) == 0
    out = capsys.readouterr().out
    assert "MNIST is neither given" in out
    assert f"Samples, drawn anew every 100 steps: {folder / 'samples.png'}" in out
    assert f"Export: python export/savedmodel.py {folder} --candidates 2\n" in out
    assert files(folder) >= EXPECTED | {"interpolation.png", "result.json"}
    # The printed likelihood is that of the saved density, on the same noisy test images.
    density = keras.saving.load_model(folder / "density.keras")
    images = tfdde.datasets.load_digits().x_test
    epsilon = np.random.default_rng([0, 1]).standard_normal(images.shape, np.float32)
    values = density.log_density(images + np.float32(0.1) * epsilon, normalized=True).numpy()
    result = json.loads((folder / "result.json").read_text())
    assert result["log_likelihood"] == pytest.approx(values.mean(), abs=1e-3)
    printed = re.search(r"sigma = 0.1: (\S+) ± \S+ nats, (\S+) ± (\S+) bits per dim", out)
    assert float(printed[1]) == pytest.approx(values.mean(), abs=0.006)
    assert float(printed[2]) == pytest.approx(-values.mean() / 64 / np.log(2), abs=6e-4)
    # The generator has the same density.
    generator = keras.saving.load_model(folder / "generator.keras")
    again = generator.data_dde.log_density(images, normalized=True)
    np.testing.assert_allclose(again, density.log_density(images), rtol=1e-5)


@pytest.mark.usefixtures("bare")
def test_digits_that_are_asked_for_are_those_of_a_bare_machine(monkeypatch, capsys):
    """With the same arguments and images, all that follows is the same."""
    args, images = mnist.load(["--width=16", "--output=run"], None)
    assert "MNIST is neither given" in capsys.readouterr().out
    monkeypatch.setattr("tfdde.datasets.images._from_tfds", None)  # is not called
    asked, found = mnist.load(["--width=16", "--output=run", "--dataset=digits"], None)
    assert capsys.readouterr().out == ""
    assert vars(asked) == vars(args) and asked.dataset == "digits"
    for name in ("x_train", "x_test", "y_train", "y_test"):
        np.testing.assert_array_equal(getattr(found, name), getattr(images, name))


def test_without_a_trusted_log_z_the_density_stays_unnormalised(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(mnist.LOG_Z, "residual", (100, 20))  # too few samples to be trusted
    args = ["--width=8", "--depth=1", "--no-jit", "--steps=2", "--generator-steps=2"]
    with pytest.warns(UserWarning, match="can't be trusted"):
        code = mnist.main([*args, "--dataset=digits", f"--output={tmp_path / 'run'}"])
    assert code == 0
    out = capsys.readouterr().out
    assert "UNNORMALISED log-density of 297 test images" in out and "likelihood" not in out
    assert "log_likelihood" not in json.loads((tmp_path / "run/result.json").read_text())


def test_a_run_does_not_go_on_with_other_images(tmp_path, idx_folder, capsys):
    folder = tmp_path / "run"
    args = [f"--data-dir={idx_folder}", f"--output={folder}"]
    # As of a run that was killed at once.
    runs.Run(folder, vars(mnist.parse(args, "mnist")) | {"checksum": 1})
    assert mnist.main([*args, "--resume"]) == 2
    assert "was started with checksum = 1, not " in capsys.readouterr().err


def test_missing_data_is_one_sentence(tmp_path, capsys):
    folder = tmp_path / "run"
    nowhere = tmp_path / "nowhere"
    assert mnist.main([f"--data-dir={nowhere}", f"--output={folder}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(nowhere) in error
    assert not folder.exists()


def test_damaged_data_are_one_sentence(tmp_path, idx_folder, capsys):
    images = idx_folder / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:100])
    args = [f"--data-dir={idx_folder}", f"--output={tmp_path / 'run'}"]
    assert mnist.main(args) == 2
    assert capsys.readouterr().err.startswith("error: the data are damaged: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset=checkerbord"], "invalid choice: 'checkerbord'.*checkerboard"),
        (["--sigma=-1"], "argument --sigma: .*'-1'"),
        (["--steps=0"], "argument --steps: .*'0'"),
        (["--preset=fast"], "argument --preset: invalid choice: 'fast'"),
        (["--sigmma=1"], "unrecognized arguments: --sigmma"),
    ],
)
def test_wrong_arguments(capsys, args, message):
    with pytest.raises(SystemExit) as exit_:
        toy_script.main(args)
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)


PARSERS = {
    "toy": toy_script.parse,
    "mnist": mnist.parse,
    "tabular": lambda argv: tabular.parse(["--dataset=wine", *argv]),
}


@pytest.mark.parametrize("name", PARSERS)
def test_presets_are_defaults_that_options_override(capsys, name):
    parse, folder = PARSERS[name], ROOT / "train" / "presets" / name
    presets = {p.stem: json.loads(p.read_text())["arguments"] for p in folder.glob("*.json")}
    unset = ("data", "data_dir", "columns", "missing", "dependent", "tails", "devices", "preset")
    unset += ("base", "contrast_weight")
    for preset, defaults in presets.items():
        arguments = vars(parse([f"--preset={preset}"]))
        assert arguments.items() >= defaults.items()
        assert None not in [v for k, v in arguments.items() if k not in (*unset, *defaults)]
    assert len({tuple(sorted(p)) for p in presets.values()}) == 1
    default = {"toy": "paper", "mnist": "quick", "tabular": "levels"}[name]
    chosen, without = vars(parse([f"--preset={default}"])), vars(parse([]))
    assert chosen | {"preset": None} == without | {"preset": None}
    other = {"toy": "quick", "mnist": "full", "tabular": "paper"}[name]
    assert vars(parse([f"--preset={other}", "--width=77"]))["width"] == 77
    with pytest.raises(SystemExit):
        parse([f"--preset={other}", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"(default: {presets[other]['batch_size']})" in text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("toy", ["--preset=quick", "--dataset=rings", "--no-relative", "--seed=3", "--width=9"]),
        ("mnist", ["--paper", "--width=9", "--jit", "--devices", "CPU:0", "CPU:1"]),
        ("tabular", ["--dataset=gas", "--paper", "--no-jit"]),
    ],
)
def test_the_config_of_a_run_is_a_preset(tmp_path, name, options):
    parse = tabular.parse if name == "tabular" else PARSERS[name]
    config = tmp_path / "run" / "config.json"
    arguments = vars(parse([*options, f"--output={config.parent}"]))
    runs.Run(config.parent, arguments | {"checksum": 1})
    again = vars(parse([f"--preset={config}"]))
    default = again["output"]
    assert again == arguments | {"preset": str(config), "output": default}
    assert default.startswith("runs/")
    changed = vars(parse([f"--preset={config}", "--depth=33"]))
    assert changed == again | {"depth": 33}


def test_a_preset_that_is_none_is_an_error(tmp_path, capsys):
    path = tmp_path / "preset.json"
    for text, message in {
        '{"arguments": {"width": -3}}': "argument --width: must be an integer >= 1, got '-3'",
        '{"arguments": {"widht": 3}}': "unrecognized arguments: --widht=3",
        '{"arguments": {"widht": null}}': "--preset has settings that this script does not",
        '{"arguments": {"dataset": "ring"}}': "argument --dataset: invalid choice: 'ring'",
    }.items():
        path.write_text(text)
        with pytest.raises(SystemExit):
            toy_script.main([f"--preset={path}"])
        assert message in capsys.readouterr().err
    for text in ("[]", "{", '{"arguments": [1]}'):
        path.write_text(text)
        assert toy_script.main([f"--preset={path}"]) == 2
        assert str(path) in capsys.readouterr().err


def test_a_preset_of_another_table(tmp_path):
    """Its settings count, and its data only if there are no others."""
    config = tmp_path / "config.json"
    config.write_text('{"arguments": {"dataset": "wine", "width": 9, "columns": ["a"]}}')
    args = tabular.parse([f"--preset={config}", "--data=x.csv"])
    assert (args.data, args.dataset, args.columns, args.width) == ("x.csv", None, None, 9)
    assert tabular.parse([f"--preset={config}", "--dataset=digits"]).dataset == "digits"


def test_mnist_defaults_follow_the_networks():
    parse = mnist.parse
    paper = vars(parse(["--paper"], "mnist"))
    assert paper == vars(parse(["--preset=paper"], "mnist"))
    assert (paper["networks"], paper["width"], paper["depth"], paper["jit"]) == (
        "dense",
        256,
        15,
        True,
    )
    assert paper["sigma"] == paper["sigma_max"] == 0.5 and paper["dde_steps"] == 10
    dense = vars(parse(["--preset=quick", "--networks=dense", "--depth=5"], "mnist"))
    assert (dense["networks"], dense["width"], dense["depth"]) == ("dense", 256, 5)
    assert dense["learning_rate"] == paper["learning_rate"] and dense["sigma_max"] == 2.0
    assert vars(parse([], "mnist"))["latent_dim"] == 16
    assert vars(parse([], "stacked_mnist"))["latent_dim"] == 48


def test_a_stacked_run_with_log_z_is_repeated_with_it(tmp_path):
    first = mnist.parse([], "stacked_mnist")
    assert first.log_z is False and mnist.parse([]).log_z is True
    asked = mnist.parse(["--log-z"], "stacked_mnist")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"arguments": {**vars(asked), "preset": None}}))
    assert mnist.parse([f"--preset={path}"]).log_z is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--forward=1.5"], "--forward must be from 0 to 1, got 1.5"),
        (["--ratio=denoising"], "--forward 0.5 needs --ratio logistic; else it must be 0"),
        (["--dde-steps=2"], "--one-stage needs --ratio logistic and --dde-steps 1, got logistic"),
        (["--ema=1"], "--ema must be below 1, got 1"),
        (["--sigma=3"], "--sigma-max 2.0 is below --sigma 3.0"),
    ],
)
def test_mnist_refuses(capsys, options, message):
    with pytest.raises(SystemExit):
        mnist.parse(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--forward=0.5"], "--forward 0.5 needs --ratio logistic; else it must be 0"),
        (
            ["--ratio=logistic", "--no-relative"],
            "--ratio logistic learns s_q - s_p: it can't be with --no-relative",
        ),
        (["--one-stage"], "--dde-steps 1, got denoising"),
    ],
)
def test_toy_refuses(capsys, options, message):
    with pytest.raises(SystemExit):
        toy_script.parse(options)
    assert message in capsys.readouterr().err


def test_ctrl_c_then_resume_equals_an_uninterrupted_run(tmp_path):
    args = [*TOY, "--steps=1200", "--generator-steps=5"]
    stopped = subprocess.Popen(
        [sys.executable, "-u", "train/toy.py", *args, f"--output={tmp_path / 'stopped'}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)},
    )
    # The first checkpoint is of step 500: then the training is in the middle of an epoch.
    checkpoint = tmp_path / "stopped/checkpoint/density.weights.h5"
    while not checkpoint.exists() and stopped.poll() is None:
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    output = stopped.communicate(timeout=300)[0]
    assert stopped.returncode == 130, output
    assert output.splitlines()[-1] == "To continue, run the same command with --resume."
    step = int(re.search(r"Interrupted at step (\d+) of 1200 \(density\)", output)[1])
    assert 500 < step < 1200
    assert {"density.keras", "density.png", "losses.png"} <= files(tmp_path / "stopped")

    assert toy_script.main([*args, f"--output={tmp_path / 'stopped'}", "--resume"]) == 0
    assert toy_script.main([*args, f"--output={tmp_path / 'whole'}"]) == 0
    for name in ("density", "generator"):
        a, b = (
            keras.saving.load_model(tmp_path / f / f"{name}.keras") for f in ("whole", "stopped")
        )
        for v, w in zip(a.weights, b.weights, strict=True):
            np.testing.assert_array_equal(v.numpy(), w.numpy(), err_msg=v.path)
