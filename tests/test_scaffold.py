"""The package as a whole: imports, version, and the commands that users and CI share."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

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
    optional += ["apache_beam", "pandas", "pyarrow"]
    code = (
        "import sys\n"
        f"for name in {optional}: sys.modules[name] = None  # any import of it fails\n"
        "import tfdde\n"
        f"print(set({registering}) - set(sys.modules))\n"
        "import tfdde.plots, tfdde.runs, tfdde.serving\n"
        "from tfdde.datasets import Table, load_builtin, load_uci, read_table, split_rows\n"
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


def test_ci_runs_the_two_commands_of_the_readme():
    """It takes them from README's text."""
    ci = (ROOT / ".ci" / "run").read_text()
    take = re.search(r"< <\((grep .*)\)\n", ci)[1]
    commands = subprocess.run(["bash", "-c", take], cwd=ROOT, capture_output=True, text=True)
    first, second = commands.stdout.splitlines()
    assert first == 'pip install -e ".[train]" && python train/mnist.py'
    assert second == 'pip install -e ".[dev]" && pytest'
    assert 'bash -c "${commands[0]} $shorter"' in ci and 'bash -c "${commands[1]}"' in ci


def test_pre_commit_runs_the_checks_of_ci_without_downloads():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert all(hook["language"] == "system" for hook in hooks.values())
    dev = " ".join(PYPROJECT["project"]["optional-dependencies"]["dev"])
    ci = (ROOT / ".ci" / "run").read_text()
    for name, command in (("ruff", "ruff check"), ("ruff-format", "ruff format"), ("mypy", "mypy")):
        assert hooks[name]["entry"].startswith(command) and f"step {command}" in ci
        assert command.split()[0] in dev


def test_types_are_shipped():
    assert (ROOT / "tfdde" / "py.typed").exists()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["tfdde"]
    assert "Typing :: Typed" in PYPROJECT["project"]["classifiers"]


def test_citation_names_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == tfdde.__version__
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Bigdeli", "Lin", "Portenier", "Dunbar", "Zwicker"
    ]  # fmt: skip
    assert "2001.02728" in paper["url"]
