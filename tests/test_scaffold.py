"""The package as a whole: imports, version, and the commands that users and CI share."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import tfdde

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_import_registers_all_that_is_saved_and_needs_no_extra():
    """In a fresh process: a saved model must load after `import tfdde` alone."""
    registering = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "tfdde").rglob("*.py")
        if "@keras.saving.register_keras_serializable" in path.read_text()
    ]
    assert "tfdde.networks.convolutional" in registering
    optional = ["matplotlib", "tensorflow_datasets", "keras_tuner", "sklearn", "ai_edge_litert"]
    optional += ["apache_beam", "pyarrow"]
    code = (
        "import sys\n"
        f"for name in {optional}: sys.modules[name] = None  # any import of it fails\n"
        "import tfdde\n"
        f"print(set({registering}) - set(sys.modules))\n"
        "import tfdde.serving\n"
        f"print([n for n in sys.modules if n.partition('.')[0] in {optional} and sys.modules[n]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["set()", "[]"]


def test_version_is_read_from_the_package():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "tfdde._version.__version__"
    }
    assert re.fullmatch(r"\d+\.\d+\.\d+", tfdde.__version__)
    assert f"## {tfdde.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_declare_what_upstream_forgets():
    extras = PYPROJECT["project"]["optional-dependencies"]
    names = {k: {re.match(r"[\w-]+", d)[0] for d in v} for k, v in extras.items()}
    assert {"tensorflow-datasets", "importlib_resources"} <= names["data"]
    assert {"keras-tuner", "tensorboard", "scipy", "scikit-learn"} <= names["tune"]


def test_ci_runs_the_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text().splitlines()
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in ('pip install -e ".[dev]"', "pytest"):
        assert command in [line.strip() for line in readme]
        assert f"step {command}" in ci
