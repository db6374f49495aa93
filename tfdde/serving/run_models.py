"""The models of a run folder: load them, and export them from a script."""

from __future__ import annotations

import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.serving.verify import Errors, ExportError


def load_run(folder: str | os.PathLike) -> tuple[DDE, Generator | None]:
    """Load the models of a run folder.

    Args:
        folder: a folder with ``density.keras`` (a ``DDE``), ``generator.keras`` (a ``Generator``)
            or both. Without ``density.keras``, the density is the generator's ``data_dde``.

    Returns:
        The density, and the generator or None.

    Raises:
        OSError: the folder does not exist or holds no model.
        ValueError: a file is corrupt or holds another kind of model; the message is one line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}.")
    density_file, generator_file = folder / "density.keras", folder / "generator.keras"
    density = _load(density_file, DDE) if density_file.exists() else None
    generator = _load(generator_file, Generator) if generator_file.exists() else None
    if density is None:
        if generator is None:
            raise FileNotFoundError(
                f"There is neither density.keras nor generator.keras in {folder}."
            )
        density = generator.data_dde
    return density, generator


def _load(path: Path, kind: type) -> Any:
    """Load a .keras file that must hold a ``kind``; ValueError of one line otherwise."""
    try:
        with warnings.catch_warnings():
            # Keras only warns when it cannot load some of the weights.
            warnings.simplefilter("error", UserWarning)
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # Keras does not check the checksums
                    raise ValueError(f"the checksum of {damaged} in it is wrong")
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zipfile, json, h5py and Keras raise many kinds for a bad file
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} can't be loaded as a Keras model: {reason}") from error
    if not isinstance(model, kind):
        raise ValueError(
            f"{path} must hold a tfdde.{kind.__name__}, got {type(model).__name__} "
            f"{model.name!r}; save the tfdde model, not its network."
        )
    return model


def export_run(
    export: Callable[..., tuple[Path, Errors]],
    run: str | os.PathLike,
    output: str | os.PathLike,
) -> int:
    """Export the models of a run folder; print the path and the measured errors.

    Args:
        export: ``export_savedmodel``, or ``export_tflite`` with its options filled in.
        run: the run folder.
        output: the path to write to.

    Returns:
        The exit code of a script: 0; 1 if the export fails; 2 if there is nothing to export.
    """
    try:
        path, errors = export(output, *load_run(run), run=run)
    except (OSError, ValueError, ImportError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ExportError) else 2
    nats = errors.pop("log_density_nats")
    print("Largest difference from Keras, as a share of the largest value:")
    for name, measured in errors.items():
        print(f"  {name} {measured:.1e}" + (f" ({nats:.1e} nats)" if name == "log_density" else ""))
    print(f"Wrote {path}")
    return 0
