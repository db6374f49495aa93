"""README and the pages of the documentation: what they show runs, what they name exists."""

import contextlib
import importlib.util
import io
import re
import runpy
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest

import tfdde

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/tutorials").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
]
# Pages with blocks of Python that are no notebooks; scoring.md's block reads files that a test of
# tfdde.beam makes.
WITH_CODE = [
    page
    for page in PAGES
    if "```python" in page.read_text() and page.name not in ("README.md", "scoring.md")
]


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


@pytest.fixture
def scope(tmp_path, monkeypatch):
    """What the pages' blocks may use without making it, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    x = tfdde.datasets.sample_toy("checkerboard", 512, seed=0)
    return {"keras": keras, "np": np, "tfdde": tfdde, "x": x, "labels": np.arange(512) % 10}


def run(code, scope):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "block", "exec"), scope)
    return printed.getvalue()


def test_the_lines_of_the_readme(scope):
    (code,) = blocks(ROOT / "README.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    del scope["x"]
    assert "log Z = " in run(code, scope)
    dde = scope["dde"]
    assert dde.normalized
    grid, cell = tfdde.metrics.grid(-6, 6, 120)
    exact = tfdde.datasets.toy_log_density("checkerboard", grid, 0.2)
    assert tfdde.metrics.grid_kl(exact, dde.log_density(grid).numpy(), cell) < 0.2
    loaded = keras.saving.load_model("density.keras")
    np.testing.assert_array_equal(loaded.log_density(grid), dde.log_density(grid))


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
@pytest.mark.filterwarnings("ignore")  # densities of a second's training are not trusted
def test_blocks_of_the_pages_run(page, scope):
    for code in blocks(page):
        if code not in blocks(ROOT / "README.md"):
            run(code, scope)


def commands(page):
    """The commands of a page that run a script or a module of ours, as lists of words."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?: {4}|\s*exec )(.*)$", text, re.M):
        if re.match(r"python (train|export|benchmarks)/|python -m tfdde", line):
            yield shlex.split(line.rstrip("'"), comments=True)


COMMANDS = [(name_of(page), words) for page in PAGES for words in commands(page)]


def help_of(words, monkeypatch):
    """What the script or module says it takes."""
    if words[1] == "-m":
        module = importlib.import_module(f"{words[2]}.__main__")
        main = module.main
    else:
        path = ROOT / words[1]
        assert path.exists()
        monkeypatch.syspath_prepend(path.parent)
        if path.parent.name == "benchmarks":  # they need packages that the tests don't
            return path.read_text()
        main = runpy.run_path(str(path))["main"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        main(["--help"])
    return printed.getvalue()


@pytest.mark.parametrize(
    "words", [words for _, words in COMMANDS], ids=[f"{p}: {shlex.join(w)}" for p, w in COMMANDS]
)
def test_commands_have_the_options_that_are_shown(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    text = help_of(words, monkeypatch)
    for option in (word for word in words if word.startswith("--")):
        assert f"{option}" in text, option


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"https?:", target):
            assert (page.parent / target).exists(), target
    for target in re.findall(r"\{doc\}`([^`]+)`", text):
        assert (page.parent / f"{target}.md").exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_the_package_exist(page):
    """`tfdde.a.b` in a text is something that can be imported."""
    for name in set(re.findall(r"`(tfdde(?:\.\w+)+)", page.read_text())):
        parts = name.split(".")
        depth = len(parts)
        while True:
            with contextlib.suppress(ModuleNotFoundError):
                found = importlib.import_module(".".join(parts[:depth]))
                break
            depth -= 1
        for part in parts[depth:]:
            found = getattr(found, part)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_room_has_a_page_and_a_row():
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "tfdde").iterdir()}
    rooms -= {"__init__", "_version", "__pycache__", "typed", "convnets", "starts"}
    rooms = {room for room in rooms if "." not in room}
    reference = (ROOT / "docs/reference.md").read_text()
    architecture = (ROOT / "docs/architecture.md").read_text()
    for room in rooms:
        assert f"api/{room}\n" in reference, room
        assert re.search(rf"`{room}(/|\.py)`", architecture), room


def test_picture_of_the_rooms_is_that_of_the_code():
    path = ROOT / "docs/draw_rooms.py"
    drawn = runpy.run_path(str(path))["picture"]()
    current = (ROOT / "docs/images/rooms.svg").read_text() == drawn
    assert current, "run python docs/draw_rooms.py"
