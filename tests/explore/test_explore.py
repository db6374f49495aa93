"""Pages of tfdde.explore in headless Chromium, against Keras."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

import tfdde
from tfdde import networks
from tfdde.datasets.readers import headers
from tfdde.explore import __main__ as command
from tfdde.explore import page as page_module
from tfdde.explore import write_page
from tfdde.serving.signatures import log_density

MODULES = os.environ.get("TFDDE_NODE_MODULES", "")
CHROMIUM = shutil.which("chromium")
NODE = shutil.which("node")
browser = pytest.mark.skipif(
    not (
        CHROMIUM
        and NODE
        and all(Path(MODULES, name).is_dir() for name in ("@litertjs/core", "papaparse"))
    ),
    reason="needs chromium, node, and TFDDE_NODE_MODULES with the packages of .ci/run",
)
BAD_LINES = {  # each with what the page says of it
    "1,2,x,4": "not all cells are finite numbers",
    '1,"2,3",4': "3 cells, not 4",
    '1,"2,3,4': "Quoted field unterminated",
    "0x10,2,3,4": "not all cells are finite numbers",
    "1,,3,4": "not all cells are finite numbers",
    "1,2,3,1e39": "not all cells are finite numbers",
    "1,2_0,3,4": "not all cells are finite numbers",
    "Infinity,2,3,4": "not all cells are finite numbers",
}
SHAPES = {"plane": (2,), "images": (8, 8, 1), "table": (4,)}


@pytest.fixture(scope="module", params=[*SHAPES])
def page(request, tmp_path_factory):
    keras.utils.set_random_seed(1)
    kind, folder = request.param, tmp_path_factory.mktemp("explore")
    shape = SHAPES[kind] if kind == "images" else SHAPES[kind][0]
    density = tfdde.DDE(networks.residual_mlp(shape, width=16, depth=2))
    for v in density.trainable_variables:
        v.assign(v + 0.1)
    density.save(folder / "density.keras")
    generator = None
    if kind != "table":
        decoder = networks.residual_mlp(
            3, width=16, depth=2, output_shape=shape, output_activation="sigmoid"
        )
        generated = tfdde.DDE(networks.residual_mlp(shape, width=16, depth=2))
        generator = tfdde.Generator(decoder, density, generated, latent_dim=3)
        generator.save(folder / "generator.keras")
    rows = None if kind == "images" else 64
    path = write_page(folder, folder / "page", MODULES, batch_size=rows)
    if rows is None:  # a slider asks for one image at a time
        assert json.loads((path / "model.tflite.json").read_text())["batch_size"] == 1

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield kind, density, generator, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@browser
def test_page_equals_keras(page, tmp_path):
    kind, density, generator, url = page
    rows = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    arguments = []
    if kind == "table":
        lines = [",".join(map(repr, row)) for row in rows.tolist()]
        lines[:40] = [",".join(f'"{v!r}"' for v in row) for row in rows[:40].tolist()]
        lines[60] = " " + lines[60].replace(",", " ,\t")
        head = ['"a, first",b,c,"the ""d"""', "1,2", *lines]
        (tmp_path / "rows.csv").write_text("\n".join([*head, *BAD_LINES]))
        arguments = [tmp_path / "rows.csv"]
    script = Path(__file__).with_name("browser.mjs")
    done = subprocess.run(
        [NODE, script, MODULES, CHROMIUM, url, "1280,375", kind, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for width, got in zip((1280, 375), json.loads(done.stdout), strict=True):
        check_page(page, rows, width, got)


def check_page(page, rows, width, got):
    """What the page shows at this width of the window is what Keras computes."""
    kind, density, generator, _ = page
    assert got["errors"] == [] and got["outside"] == []
    assert got["wide"] <= width
    if kind == "plane":
        x = np.array([[0.5, -0.25]], np.float32)
        expected = [
            *np.ravel(log_density(density, x)),
            *np.ravel(density.score(x)),
        ]
        np.testing.assert_allclose(got["values"], expected, rtol=1e-5)
        assert "unnormalised" in got["label"]
        assert float(got["moved"]) > 0.5
        # The map shows [-4, 4]²; a mouse is at whole pixels of it.
        point, pixel = got["dragged"][:2], 8 / min(width - 34, 480)
        np.testing.assert_allclose(point, [2.0, 1.6], atol=pixel)
        x = np.array([point], np.float32)
        expected = [*np.ravel(log_density(density, x)), *np.ravel(density.score(x))]
        np.testing.assert_allclose(got["dragged"][2:], expected, rtol=1e-5)
    elif kind == "images":
        expected = generator.decode(np.array([got["latent"]], np.float32))
        np.testing.assert_allclose(got["values"], np.ravel(expected), rtol=1e-5)
        assert got["count"] == 24
    else:
        scores = -np.float64(log_density(density, rows))
        np.testing.assert_allclose(float(got["sum"]), scores.sum(), rtol=1e-5)
        # The first 50 rows of the same file, dropped on the page.
        assert got["taken"]
        np.testing.assert_allclose(float(got["dropped"]), scores[:50].sum(), rtol=1e-5)
        expected = [f"line {103 + i}: {why}" for i, why in enumerate(BAD_LINES.values())]
        assert got["bad"] == ["line 2: 2 cells, not 4", *expected]
        assert got["rows"] == 11


def in_node(expression, *arguments):
    """The value of a JavaScript expression, with table.js's ``parse`` and ``order``, as JSON."""
    if not (NODE and Path(MODULES, "papaparse").is_dir()):
        pytest.skip("needs PapaParse")
    program = f"""
        const {{ createRequire }} = await import("node:module");
        globalThis.Papa = createRequire(`${{process.argv[1]}}/`)("papaparse");
        const text = await (await import("node:fs")).promises.readFile(process.argv[2], "utf8");
        const {{ parse, order }} = await import("data:text/javascript," + encodeURIComponent(text));
        const given = process.argv.slice(3).map(JSON.parse);
        console.log(JSON.stringify({expression}));
    """
    static = Path(page_module.__file__).parent / "static"
    command = [NODE, "--input-type=module", "-e", program, MODULES, static / "table.js"]
    command += [json.dumps(argument) for argument in arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def parsed(text, width, columns=None):
    rows = "(({ rows, lines, bad }) => ({ rows: [...rows], lines, bad }))(parse(...given))"
    got = in_node(rows.replace("given", "given.map((v) => v ?? undefined)"), text, width, columns)
    return np.reshape(got["rows"], (-1, width)), got["lines"], got["bad"]


def test_lines_are_read_as_by_python():
    cases = json.loads((Path(__file__).parents[1] / "datasets/readers/csv_cases.json").read_text())
    rows, lines, bad = parsed("\n".join(["a,b,c", *cases]), 3)
    good = [i for i, row in enumerate(cases.values()) if row is not None]
    assert lines == [i + 2 for i in good] and len(bad) == len(cases) - len(good)
    expected = [row for row in cases.values() if row is not None]
    np.testing.assert_array_equal(rows, np.float32(expected))


@pytest.mark.parametrize(
    "names",
    [
        ["price", "weight", "age"],
        ["age", "price", "weight"],
        ["id", "weight", "price", "note", "age"],
        ["price", "age"],
        ["price", "weight", "age", "age"],
        ["Price", "weight", "age"],
    ],
    ids=",".join,
)
def test_a_header_puts_the_columns_in_order_as_in_python(tmp_path, names):
    columns = ["price", "weight", "age"]
    path = tmp_path / "x.csv"
    path.write_text(",".join(names) + "\n" + ",".join(map(str, range(len(names)))) + "\n")
    rows, lines, bad = parsed(path.read_text(), 3, columns)
    try:
        chosen = headers.choose(names, columns, None, (), 3, 0, path)[0]
    except ValueError:
        assert not lines and bad[0].startswith("line 1: the header ")
    else:
        assert lines == [2] and not bad
        np.testing.assert_array_equal(rows[0], [names.index(name) for name in chosen])


def test_numbers_can_be_names_of_columns():
    """Only where the model's columns say so; otherwise no row is lost."""
    rows, lines, bad = parsed("2,1\n5,6\n", 2, ["1", "2"])
    assert rows.tolist() == [[6, 5]] and lines == [2] and not bad
    rows, lines, _ = parsed("2,1\n5,6\n", 2, ["a", "b"])
    assert rows.tolist() == [[2, 1], [5, 6]] and lines == [1, 2]
    rows, lines, _ = parsed("\ufeffb,a\n5,6\n", 2, ["a", "b"])  # as spreadsheets write UTF-8
    assert rows.tolist() == [[6, 5]] and lines == [2]


def test_bad_input_is_one_sentence(tmp_path, capsys):
    assert command.main([str(tmp_path / "none"), "--output", str(tmp_path / "page")]) == 2
    assert capsys.readouterr().err.startswith("error: There is no run folder")
    assert not (tmp_path / "page").exists()
