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
from scipy import stats

import tfdde
from tfdde import anomalies, networks
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


def normal_rows(width):
    """Training and held-out rows, whose last column has three values."""
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(340, width)).astype(np.float32)
    rows[:, -1] = rng.integers(-1, 2, 340)
    return rows[:300], rows[300:]


def expected_explanation(density, row):
    """What Python says of a row, [column][share, usual], and whether it is an alarm."""
    training, held_out = normal_rows(row.shape[1])

    def of(rows):
        return log_density(density, rows.astype(np.float32)).numpy()

    found = anomalies.explain(of, row, training)
    alarm = -of(row)[0] > anomalies.threshold(-of(held_out), 0.05).value
    return np.column_stack([found.shares[0], found.usual[0]]), alarm


def check_explanation(density, row, explanation):
    expected, alarm = expected_explanation(density, np.array([row], np.float32))
    got = [[column["share"], column["usual"]] for column in explanation["values"]]
    np.testing.assert_allclose(got, expected, atol=1e-3)
    text = "Alarm: below" if alarm else "No alarm: not below"
    assert explanation["text"].startswith(f"{text} the threshold of ")
    assert "of 40 held-out rows are lower." in explanation["text"]
    assert explanation["rows"] == 1 + len(row)


@pytest.fixture(scope="module", params=[*SHAPES])
def page(request, tmp_path_factory):
    keras.utils.set_random_seed(1)
    kind, folder = request.param, tmp_path_factory.mktemp("explore")
    shape = SHAPES[kind] if kind == "images" else SHAPES[kind][0]
    density = tfdde.DDE(networks.residual_mlp(shape, width=16, depth=2))
    for v in density.trainable_variables:
        v.assign(v + 0.1)
    density.save(folder / "density.keras")
    if kind in ("plane", "table"):
        anomalies.NormalRows(*normal_rows(shape)).save(folder / "normal_rows.npz")
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
        check_explanation(density, x[0], got["explanation"])
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
        strangest = np.argsort(-scores)
        assert "rows and of 40 held-out rows" in got["change"]
        for place, explanation in ((0, got["explanation"]), (3, got["chosen"])):
            row = rows[strangest[place]]
            np.testing.assert_allclose(explanation["row"], row, rtol=1e-6)
            check_explanation(density, row, explanation)


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


def explained_in_node(rows, normal, precision, place):
    """`explain` and `standing` of explanation.js, for a Gaussian of this precision matrix."""
    if not NODE:
        pytest.skip("needs node")
    text = (Path(page_module.__file__).parent / "static/explanation.js").read_text()
    program = """
        const { explain, standing } = await import("data:text/javascript," + encodeURIComponent(
            process.argv[1]));
        const [rows, normal, precision, place] = process.argv.slice(2).map(JSON.parse);
        const n = precision.length;
        const logDensity = async (x) => Float64Array.from({ length: x.length / n }, (_, i) => {
            const row = x.subarray(i * n, (i + 1) * n);
            return -0.5 * precision.reduce((sum, line, j) => sum + row[j] * line.reduce(
                (s, p, k) => s + p * row[k], 0), 0);
        });
        const found = [];
        for (const row of rows) found.push(await explain(logDensity, row, normal.ranges));
        console.log(JSON.stringify([found, standing(place, normal), standing(place, null)]));
    """
    arguments = [json.dumps(v) for v in (rows.tolist(), normal, precision.tolist(), place)]
    command = [NODE, "--input-type=module", "-e", program, text, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def changes_in_node(pairs):
    """`kolmogorovSmirnov` and `change` of change.js for pairs of samples."""
    if not NODE:
        pytest.skip("needs node")
    text = (Path(page_module.__file__).parent / "static/change.js").read_text()
    program = """
        const { kolmogorovSmirnov, change } = await import("data:text/javascript," +
            encodeURIComponent(process.argv[1]));
        const text = (await import("node:fs")).readFileSync(0, "utf8");
        console.log(JSON.stringify(JSON.parse(text).map(([a, b]) => [
            kolmogorovSmirnov(a, b), change(a, { held_out_log_density: b }), change(a, null)])));
    """
    command = [NODE, "--input-type=module", "-e", program, text]
    given = json.dumps([[a.tolist(), b.tolist()] for a, b in pairs])
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_change_is_the_test_of_scipy_and_its_p_values_are_uniform():
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (200, 41), (1_000, 300)]
    same = [(rng.normal(size=n), rng.normal(size=m)) for n, m in sizes for _ in range(100)]
    other = [(a, b + 0.4) for a, b in same]
    tied = [(a.round(1), b.round(1)) for a, b in same[:20]]
    got = changes_in_node([*same, *other, *tied])
    for (a, b), (found, text, nothing) in zip([*same, *other, *tied], got, strict=True):
        expected = stats.ks_2samp(a, b, method="exact")
        assert found["distance"] == pytest.approx(expected.statistic, abs=1e-12)
        if found["p"] > 1e-6:
            assert found["p"] == pytest.approx(expected.pvalue, abs=0.06, rel=0.3)
        word = "The table has changed: p" if found["p"] < 0.01 else "No change is seen: p = "
        assert text.startswith(word) and f"of {len(a)} rows and of {len(b)} held-out rows" in text
        assert nothing == ""
    p_values = np.array([found["p"] for found, _, _ in got[: len(same)]])
    for rate in (0.01, 0.05, 0.1, 0.5):
        alarms = int((p_values < rate).sum())
        assert stats.binomtest(alarms, len(same), rate).pvalue > 0.001
    assert np.mean([found["p"] < 0.01 for found, _, _ in got[len(same) + 200 : -20]]) > 0.95


def test_too_few_rows_tell_no_change():
    ((_, text, _),) = changes_in_node([(np.arange(5.0), np.arange(300.0))])
    assert text == "5 rows are too few to tell whether the table has changed."


def test_rows_are_explained_as_by_python():
    """In float32 rows, as the page has them: the same grids, the same best values."""
    training, held_out = normal_rows(3)
    precision = np.array([[2.0, -1.2, 0.3], [-1.2, 1.5, 0.0], [0.3, 0.0, 1.0]])

    def gaussian(x):
        x = np.float32(x).astype(np.float64)
        return -0.5 * np.einsum("ij,jk,ik->i", x, precision, x)

    rows = np.float32([[0.1, 4.0, 0.0], [0.0, 0.0, 0.0], [-9.0, 1.0, 1.0], [1.0, 2.0, 5.0]])
    known = np.sort(gaussian(held_out))
    found = anomalies.threshold(-known, 0.05)
    normal = {
        "ranges": [r._asdict() for r in anomalies.ranges(training)],
        "held_out_log_density": known.tolist(),
        "threshold": {"log_density": -found.value, **found._asdict()},
    }
    got, below, missing = explained_in_node(rows, normal, precision, known[1])
    expected = anomalies.explain(gaussian, rows, training)
    for name, values in (("share", expected.shares), ("usual", expected.usual)):
        np.testing.assert_allclose([[c[name] for c in row] for row in got], values, atol=1e-6)
    assert below.startswith("No alarm: not below" if known[1] >= -found.value else "Alarm: below")
    assert below.endswith("; 1 of 40 held-out rows are lower.")
    assert missing == (
        "The run keeps no normal rows, so there is neither a threshold nor a usual value."
    )


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
