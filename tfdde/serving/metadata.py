"""What an artifact tells about itself: facts as JSON, and the same as a model card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde._version import __version__
from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.networks.normalization import statistics
from tfdde.serving.verify import Errors
from tfdde.utils.files import read_object

FACTS, CARD = "metadata.json", "model_card.md"


def facts(
    density: DDE,
    generator: Generator | None,
    signatures: Mapping[str, Any],
    errors: Errors,
    bound: float,
    run: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """All that is known of an artifact, as JSON holds it.

    Args:
        density, generator: what was exported.
        signatures: concrete functions by name.
        errors: measured differences from Keras, and
        bound: the largest that was allowed, both as shares of the largest value.
        run: folder of the training run, whose ``config.json`` and ``result.json`` are read if
            they are there; a held-out likelihood only if it is of this very density.

    Raises:
        ValueError: one of these files is damaged; the message is one line.
    """
    config, result = (_read(run, name) for name in ("config.json", "result.json"))
    arguments = config.get("arguments")
    checksum = arguments.get("checksum") if isinstance(arguments, dict) else None
    log_z = density.partitions if density.condition_dim else density.partition
    log_partition = log_z and _as_json(log_z.get_config())
    held_out = None
    this_one = density.normalized and result.get("log_partition") == log_partition
    if this_one and "log_likelihood" in result:
        held_out = {name: result.get(name) for name in ("log_likelihood", "standard_error")}
        held_out["rows"] = result.get("rows", {}).get("test")
    layer = density.normalization
    preprocessing: dict[str, Any] = {"by_the_caller": "none: rows in the data's own units"}
    if layer is None:
        preprocessing["inside"] = "none"
    else:
        preprocessing["inside"] = "(x - mean) / standard_deviation"
        mean, variance = (np.ravel(v) for v in statistics(layer))
        preprocessing["mean"] = mean.tolist()
        preprocessing["standard_deviation"] = np.sqrt(variance).tolist()
    return {
        "sigma": density.noise.sigma,
        "sigma_unit": "the data's own" if layer is None else "standard deviations of the data",
        "input_shape": list(density.data_shape),
        "columns": result.get("columns"),
        "condition_dim": density.condition_dim,
        "latent_dim": None if generator is None else generator.latent_dim,
        "preprocessing": preprocessing,
        "signatures": {name: _describe(function) for name, function in signatures.items()},
        "normalized": density.normalized,
        "log_partition": log_partition,
        "held_out": held_out,
        "errors": errors,
        "error_bound": bound,
        "data_hash": None if checksum is None else f"crc32:{checksum:08x}",
        "training": config or None,
        "versions": {"tfdde": __version__, **{m.__name__: m.__version__ for m in (tf, keras)}},
    }


def card(about: Mapping[str, Any]) -> str:
    """The model card of these facts, in Markdown."""
    given = f", given {about['condition_dim']} conditions" if about["condition_dim"] else ""
    sampler = ", and a one-shot sampler of the same density" if about["latent_dim"] else ""
    lines = [
        "# Model card",
        "",
        f"The log-density of data blurred by Gaussian noise of level σ = {about['sigma']:.6g} "
        f"(unit: {about['sigma_unit']}){given}{sampler}: a denoising density estimator, by tfdde.",
        "",
        "## Inputs and outputs",
        "",
        "| signature | inputs | output |",
        "| --- | --- | --- |",
    ]
    for name, each in about["signatures"].items():
        columns = (
            ", ".join(f"{key} {_shape(value)}" for key, value in each[side].items())
            for side in ("inputs", "outputs")
        )
        lines.append(f"| {name} | {' | '.join(columns)} |")
    lines += [
        "",
        "- Rows are in the data's own units; whatever standardisation there is, is inside.",
    ]
    if about["columns"]:
        lines.append(f"- Columns, in this order: {', '.join(about['columns'])}.")
    lines += [
        "- Log-densities are in nats per row; the score is their gradient.",
        *(["- Equal seeds give equal samples."] if about["latent_dim"] else []),
        "- NaN in a row gives NaN in that row alone.",
        "",
        "## Measured",
        "",
        *(f"- {text}" for text in _log_z(about)),
        f"- Held-out log-likelihood: {_held_out(about['held_out'])}.",
        "- Largest difference from Keras, as a share of the largest value "
        f"(allowed: {about['error_bound']:.0e}): {_errors(about['errors'])}.",
        "",
        "## Origin",
        "",
        f"- Checksum of the data: {about['data_hash'] or 'unknown'}.",
        f"- Training: {_training(about['training'])}.",
        *([f"- Weights: {about['weights']}."] if "weights" in about else []),
        f"- Exported by {', '.join(' '.join(pair) for pair in about['versions'].items())}.",
        "",
        "## Limits",
        "",
        "- Detail finer than σ is not in the density.",
        "- Far from the training rows nothing has been learned but that the density falls.",
    ]
    if about["condition_dim"]:
        lines.append("- Between and beyond the conditions of the training it is a guess.")
    if about["latent_dim"]:
        lines.append("- The sampler may miss parts of the data, and its samples are without noise.")
    return "\n".join(lines) + "\n"


def text(about: Mapping[str, Any]) -> str:
    """The facts as text of ``metadata.json``."""
    return json.dumps(about, indent=2) + "\n"


def _as_json(value: Any) -> Any:
    """The value as JSON holds it: tuples become lists, and what is not finite null."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def _read(run: str | os.PathLike | None, name: str) -> dict[str, Any]:
    path = None if run is None else Path(run) / name
    if path is None or not path.exists():
        return {}
    return read_object(path)


def _describe(function: Any) -> dict[str, dict[str, Any]]:
    def of(spec: Any) -> dict[str, Any]:
        return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}

    inputs = function.structured_input_signature[0]
    return {
        "inputs": {spec.name: of(spec) for spec in inputs},
        "outputs": {name: of(spec) for name, spec in function.structured_outputs.items()},
    }


def _shape(spec: Mapping[str, Any]) -> str:
    sizes = ["rows" if size is None else str(size) for size in spec["shape"]]
    return f"{spec['dtype']}[{', '.join(sizes)}]"


def _log_z(about: Mapping[str, Any]) -> list[str]:
    log_z = about["log_partition"]
    if not about["normalized"]:
        return [
            "UNNORMALISED: log-densities are known up to a constant only (log Z: none trusted)."
        ]
    if "estimates" in log_z:
        pairs = zip(log_z["conditions"], log_z["estimates"], strict=True)
        texts = [f"At the condition {condition}: {_estimate(each)}" for condition, each in pairs]
        return [*texts, "At any other condition there is no log Z, and log-densities are NaN."]
    return [_estimate(log_z)]


def _estimate(log_z: Mapping[str, Any]) -> str:
    return (
        f"Normalised: log Z = {log_z['value']:.4f} ± {log_z['standard_error']:.4f} nats "
        f"(95 %: {log_z['lower']:.4f} to {log_z['upper']:.4f}; {log_z['method']})."
    )


def _held_out(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not measured"
    return (
        f"{measured['log_likelihood']:.4f} ± {measured['standard_error']:.4f} nats per row "
        f"({measured['rows']} test rows)"
    )


def _errors(errors: Errors) -> str:
    nats = errors["log_density_nats"]
    shares = {name: error for name, error in errors.items() if name != "log_density_nats"}
    texts = (f"{name} {error:.1e}" for name, error in shares.items())
    return f"{', '.join(texts)}; of the log-density near the data {nats:.1e} nats"


def _training(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return "unknown"
    return f"`{' '.join(config.get('command', []))}`, started {config.get('started')}"
