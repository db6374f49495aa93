"""The folder of a page: a TFLite file of fixed batch, LiteRT.js and the files beside this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tfdde import serving
from tfdde.utils.files import atomic_folder

LITERT = "2.5.3"  # of @litertjs/core on npm, the version tested
BATCH = 256  # rows of a call; the page pads
PAGE = ("index.html", "style.css", "explore.js", "model.js", "plane.js", "images.js", "table.js")
PACKAGES = ("core", "wasm-utils")


def fetch_litert(cache: str | os.PathLike | None = None) -> Path:
    """The node_modules folder of LiteRT.js, by npm unless it is in the cache.

    Args:
        cache: the folder; by default ``tfdde/litert-VERSION`` of the user's caches.

    Raises:
        FileNotFoundError: npm is not installed, or it failed.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(cache) if cache is not None else caches / "tfdde" / f"litert-{LITERT}"
    modules = folder / "node_modules"
    if (folder / "complete").is_file():
        return modules
    advice = "name a node_modules folder that has @litertjs/core by --litert"
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"LiteRT.js is not there and npm is not installed: {advice}.")
    folder.mkdir(parents=True, exist_ok=True)
    packages = [f"@litertjs/core@{LITERT}", "@litertjs/wasm-utils"]
    flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", os.fspath(folder)]
    done = subprocess.run(
        [npm, "install", *flags, *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").partition("\n")[0]
        raise FileNotFoundError(f"npm could not fetch LiteRT.js ({reason}): {advice}.")
    (folder / "complete").touch()
    return modules


def write_page(
    run: str | os.PathLike,
    output: str | os.PathLike,
    litert: str | os.PathLike | None = None,
    batch_size: int = BATCH,
) -> Path:
    """Write a folder that any file server can serve, offline.

    Args:
        run: a run folder, as ``serving.load_run`` reads it.
        output: the folder to write, which must not exist.
        litert: a node_modules folder with @litertjs/core; by default ``fetch_litert()``.
        batch_size: rows of each call of the model.

    Raises:
        OSError: there is no run, ``output`` exists, or LiteRT.js is not to be had.
        ValueError: a file of the run is damaged, or the model is conditional.
        ExportError: the model can't be converted.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"`output` must not exist yet, got {os.fspath(output)!r}.")
    density, generator = serving.load_run(run)
    if density.condition_dim:
        raise ValueError("A page needs a model without conditions: save its `given(condition)`.")
    modules = Path(litert) if litert is not None else fetch_litert()
    for name in PACKAGES:
        if not (modules / "@litertjs" / name / "dist/index.js").is_file():
            raise FileNotFoundError(f"There is no @litertjs/{name} in {modules}.")
    with atomic_folder(output) as beside:
        beside.mkdir()
        serving.export_tflite(
            beside / "model.tflite", density, generator, run, batch_size=batch_size
        )
        source = Path(__file__).parent / "static"
        for file in PAGE:
            shutil.copy(source / file, beside / file)
        for name in PACKAGES:
            (beside / "litert" / name).mkdir(parents=True)
            shutil.copy(modules / "@litertjs" / name / "dist/index.js", beside / "litert" / name)
        shutil.copytree(
            modules / "@litertjs/core/wasm",
            beside / "litert/wasm",
            ignore=shutil.ignore_patterns("*threaded*", "*jspi*"),
        )
    return output
