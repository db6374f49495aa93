"""Speed of a model in the browser: LiteRT.js, which the page uses, beside ONNX Runtime Web.

    cd FOLDER
    npm install @litertjs/core @litertjs/wasm-utils papaparse playwright-core onnxruntime-web
    python benchmarks/browser.py --modules FOLDER/node_modules
    python benchmarks/browser.py --modules FOLDER/node_modules --only images --batch-size 256

A density of 8 columns (``recipes.table_density``, width 64, depth 4), one of the plane, and models
of images of 28 x 28 pixels (``recipes.image_models``), each with initial weights: the speed does
not depend on them.  Both runtimes have one thread of WebAssembly, since several need headers that
plain file servers do not send.  LiteRT.js is called by the page's own code, which fills its batches
up; ONNX Runtime takes the rows as they come.  They must agree before they are timed.  Rounds take
turns; a time is the median of the rounds, with the least and the largest.  Adds a row for each
model to results/browser.json.
"""

import argparse
import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import keras
import numpy as np
import record

import tfdde
from tfdde import serving
from tfdde.explore import write_page

ORT_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
# What the page calls: a signature with the numbers of rows. 9,216 points make the map of a plane.
CALLS = {
    "table": {"log_density": [1, 256, 4096]},
    "plane": {"log_density": [1, 9216], "score": [1, 256]},
    "images": {"decode": [1, 24]},
}


def make_models(kind):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    if kind == "images":
        x = rng.uniform(size=(256, 28, 28, 1)).astype(np.float32)
        density, generator = tfdde.recipes.image_models(x, tfdde.LogUniform(0.3, 4.0))[:2]
        return density, generator
    n = {"table": 8, "plane": 2}[kind]
    x = rng.normal(size=(2_000, n)).astype(np.float32)
    layer = keras.layers.Normalization()
    noise = tfdde.LogUniform(0.1, 8.0)
    return tfdde.recipes.table_density(x, noise, 64, 4, layer, seed=0), None


def write_folder(kind, folder, modules, batch_size):
    """Write the page, and the same models for ONNX Runtime Web beside it."""
    density, generator = make_models(kind)
    run = folder / "run"
    run.mkdir()
    density.save(run / "density.keras")
    if generator is not None:
        generator.save(run / "generator.keras")
    page = write_page(run, folder / "page", modules, batch_size)
    serving.export_onnx(page / "onnx", density, generator)
    for file in ORT_FILES:
        shutil.copy(modules / "onnxruntime-web/dist" / file, page)
    (page / "onnx.html").write_text("<!doctype html><title>ONNX Runtime Web</title>")
    return page


def mib(*files):
    return round(sum(file.stat().st_size for file in files) / 2**20, 1)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *args):
        pass


def measure(kind, modules, rounds, batch_size):
    """Return the row of a kind of models."""
    with tempfile.TemporaryDirectory() as temporary:
        page = write_folder(kind, Path(temporary), modules, batch_size)
        handler = functools.partial(Quiet, directory=str(page))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            script = Path(__file__).with_name("browser.mjs")
            url = f"http://127.0.0.1:{server.server_port}/"
            job = {"url": url, "calls": CALLS[kind], "rounds": rounds}
            chromium = shutil.which("chromium") or sys.exit("There is no chromium.")
            command = ["node", script, modules, chromium, json.dumps(job)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            server.shutdown()
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout)
        litert = [*(page / "litert").rglob("*.*s"), page / "litert/wasm/litert_wasm_internal.wasm"]
        sizes = {
            "litert_mib": mib(*litert, page / "model.tflite"),
            "onnx_mib": mib(*(page / f for f in ORT_FILES), *page.glob("onnx/*/1/model.onnx")),
        }
        batch_size = json.loads((page / "model.tflite.json").read_text())["batch_size"]
    return {"name": f"{kind}, {batch_size} rows a call", **sizes, **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modules", type=Path, required=True, help="a folder node_modules")
    parser.add_argument("--only", nargs="+", choices=CALLS, default=[*CALLS])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, help="rows of a call of LiteRT.js [the page's]")
    args = parser.parse_args()
    for kind in args.only:
        row = measure(kind, args.modules, args.rounds, args.batch_size)
        record.add("browser", row)


if __name__ == "__main__":
    main()
