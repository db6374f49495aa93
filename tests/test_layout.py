"""The house: which room may import from which, and what stays inside its module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up. A room imports from rooms above it in this list only, never from below.
FLOORS = [
    ["_version", "utils"],
    ["noise", "losses", "optimizers", "tables"],
    ["networks", "datasets"],
    ["partition", "convnets", "starts"],
    ["models"],
    ["recipes", "metrics", "plots", "anomalies"],
    ["runs"],
    ["tuning", "sklearn"],
    ["serving"],
    ["scoring", "explore"],
    ["beam"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC = ("_version", "_replace", "_asdict")  # the last two are methods of NamedTuple
MODULES = sorted((ROOT / "tfdde").rglob("*.py"))
SCRIPTS = sorted(p for d in ("train", "export", "benchmarks") for p in (ROOT / d).glob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """Names of the modules of tfdde that a file imports."""
    known = {name_of(p) for p in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tfdde":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in known else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "tfdde")


def room(module):
    return module.split(".")[1]


@pytest.mark.parametrize("path", MODULES[1:], ids=name_of)
def test_imports_point_down(path):
    here = name_of(path)
    for module in imported(path):
        assert module != "tfdde", f"{here} imports the whole package"
        if room(module) != room(here):
            assert FLOOR[room(module)] < FLOOR[room(here)], f"{here} imports {module}"


def test_no_circles_within_a_room():
    uses = {name_of(p): set(imported(p)) - {name_of(p)} for p in MODULES[1:]}
    done = set()

    def visit(module, path):
        assert module not in path, f"a circle of imports: {' -> '.join((*path, module))}"
        if module not in done:
            for other in uses.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in uses:
        visit(module, ())


def foreign_private_names(path):
    """Names with one leading underscore that a file takes from another one of the project."""
    tree = ast.parse(path.read_text())
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and written(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfdde"):
            yield from (a.name for a in node.names if private(a.name))
        elif isinstance(node, ast.Attribute) and private(node.attr):
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            if owner not in ("self", "cls", "os") and node.attr not in own:
                yield node.attr


def written(node):
    return isinstance(node.ctx, ast.Store)


def private(name):
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_private_names_stay_in_their_module(path):
    assert not list(foreign_private_names(path))
