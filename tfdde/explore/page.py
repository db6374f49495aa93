"""Write the folder of a page: a TFLite file, the files in ``static/`` and JavaScript libraries.

LiteRT.js runs the model and PapaParse splits the lines of CSV files. npm fetches both once; the
page itself needs no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tfdde import serving
from tfdde.utils.files import atomic_folder

LITERT, PAPAPARSE = "2.5.3", "5.7.1"  # the tested versions of @litertjs/core and papaparse on npm
# Rows of a call of the model; the page pads the last one. A slider asks for one image at a time.
BATCH, IMAGES = 256, 1
PAGE = (
    *("index.html", "style.css", "explore.js", "model.js"),
    *("plane.js", "images.js", "table.js", "explanation.js", "change.js"),
)
LITERT_PACKAGES = ("core", "wasm-utils")
PAPAPARSE_FILES = ("papaparse.min.js", "LICENSE")


def fetch_litert(cache: str | os.PathLike | None = None) -> Path:
    """Return a node_modules folder with LiteRT.js and PapaParse; npm fetches them if need be.

    Args:
        cache: the folder to keep them in; by default ``tfdde/page-VERSIONS`` in the user's caches.

    Raises:
        FileNotFoundError: npm is not installed, or it failed.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(cache) if cache is not None else caches / "tfdde" / f"page-{LITERT}-{PAPAPARSE}"
    modules = folder / "node_modules"
    if (folder / "complete").is_file():
        return modules
    advice = "name a node_modules folder with @litertjs/core and papaparse by --litert"
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"Fetching LiteRT.js needs npm, which is not installed: {advice}.")
    folder.mkdir(parents=True, exist_ok=True)
    packages = [f"@litertjs/core@{LITERT}", "@litertjs/wasm-utils", f"papaparse@{PAPAPARSE}"]
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
    batch_size: int | None = None,
) -> Path:
    """Write a page as a folder that any file server can serve, offline.

    Args:
        run: a run folder, as ``serving.load_run`` reads it.
        output: the folder to write, which must not exist.
        litert: a node_modules folder with @litertjs/core, @litertjs/wasm-utils and papaparse; by
            default ``fetch_litert()``.
        batch_size: rows of each call of the model; by default 256, and 1 for images.

    Returns:
        The folder.

    Raises:
        OSError: there is no run, ``output`` exists, or a JavaScript library is missing.
        ValueError: a file of the run is damaged, or the model is conditional.
        ExportError: the model cannot be converted.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"`output` must not exist yet, got {os.fspath(output)!r}.")
    density, generator = serving.load_run(run)
    if density.condition_dim:
        raise ValueError(
            "A page needs a model without conditions: save `density.given(condition)` as "
            "density.keras of another folder, and write the page of that folder."
        )
    if batch_size is None:
        batch_size = IMAGES if len(density.data_shape) > 1 else BATCH
    modules = Path(litert) if litert is not None else fetch_litert()
    for name in LITERT_PACKAGES:
        if not (modules / "@litertjs" / name / "dist/index.js").is_file():
            raise FileNotFoundError(f"The package @litertjs/{name} is missing in {modules}.")
    for file in PAPAPARSE_FILES:
        if not (modules / "papaparse" / file).is_file():
            raise FileNotFoundError(f"The file papaparse/{file} is missing in {modules}.")
    with atomic_folder(output) as page:
        page.mkdir()
        serving.export_tflite(page / "model.tflite", density, generator, run, batch_size=batch_size)
        source = Path(__file__).parent / "static"
        for file in PAGE:
            shutil.copy(source / file, page / file)
        (page / "papaparse").mkdir()
        for file in PAPAPARSE_FILES:
            shutil.copy(modules / "papaparse" / file, page / "papaparse" / file)
        for name in LITERT_PACKAGES:
            (page / "litert" / name).mkdir(parents=True)
            shutil.copy(modules / "@litertjs" / name / "dist/index.js", page / "litert" / name)
        shutil.copytree(
            modules / "@litertjs/core/wasm",
            page / "litert/wasm",
            ignore=shutil.ignore_patterns("*threaded*", "*jspi*"),
        )
    return output
