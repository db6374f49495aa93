"""The description that every artifact carries: ``metadata.json`` and ``model_card.md``.

``facts`` collects what is known of a model as a dictionary that JSON can hold.  ``text`` writes it
as JSON.  ``card`` puts it into words, by the template ``model_card.md.template``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde._version import __version__
from tfdde.anomalies import NormalRows, Threshold, ranges, threshold
from tfdde.anomalies.normal_rows import FILE
from tfdde.anomalies.report import alarm_rate, alarm_sentence
from tfdde.models.candidates import Candidates
from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.networks.normalization import has_tails, location_and_scale
from tfdde.serving.signatures import log_density
from tfdde.serving.verify import Errors
from tfdde.tables.schema import Schema
from tfdde.utils.files import read_object

FACTS, CARD = "metadata.json", "model_card.md"  # file names beside a SavedModel
TEMPLATE = Path(__file__).with_name("model_card.md.template")


def facts(
    density: DDE,
    generator: Generator | None,
    signatures: Mapping[str, Any],
    errors: Errors,
    bound: float,
    run: str | os.PathLike | None = None,
    choice: Candidates | None = None,
) -> dict[str, Any]:
    """Return what is known of an artifact, as values that JSON can hold.

    Args:
        density, generator: the exported models.
        signatures: concrete functions by name.
        errors: the measured differences from Keras, as shares of the largest value.
        bound: the largest difference allowed, as such a share.
        run: folder of the training run. ``config.json``, ``result.json`` and ``normal_rows.npz``
            are read if they are there. Its held-out likelihood counts only if it was measured with
            the density's present log Z.
        choice: from what each sample is chosen; None without a choice, and then there is no entry
            ``candidates``.

    Raises:
        ValueError: one of these files is damaged; the message is one line.
    """
    config, result = (_read(run, name) for name in ("config.json", "result.json"))
    arguments = config.get("arguments")
    checksum = arguments.get("checksum") if isinstance(arguments, dict) else None
    log_z = density.partitions if density.condition_dim else density.partition
    log_partition = log_z and _as_json(log_z.get_config())
    held_out = None
    same_log_z = density.normalized and result.get("log_partition") == log_partition
    if same_log_z and "log_likelihood" in result:
        held_out = {name: result.get(name) for name in ("log_likelihood", "standard_error")}
        held_out["rows"] = result.get("rows", {}).get("test")
    layer = density.normalization
    schema = layer if isinstance(layer, Schema) else None
    preprocessing: dict[str, Any] = {"by_the_caller": "none: rows in the data's own units"}
    if layer is None:
        preprocessing["inside"] = "none"
    else:
        preprocessing["inside"] = "(x - mean) / standard_deviation"
        mean, deviation = (np.ravel(v).tolist() for v in location_and_scale(layer))
        preprocessing["mean"], preprocessing["standard_deviation"] = mean, deviation
    if schema is not None and schema.tailed.any():
        preprocessing["inside"] = (
            "u = (x - mean) / standard_deviation; where there is an entry in tails, "
            "(asinh(u) - mean of tails) / deviation of tails; else u"
        )
        preprocessing["tails"] = [
            {"mean": c.tail_mean, "deviation": c.tail_deviation}
            if c.tail_mean is not None
            else None
            for c in schema.columns
        ]
        preprocessing["range"] = [schema.outside(z).tolist() for z in (-3.0, 3.0)]
    if schema is not None and schema.medians is not None:
        preprocessing["medians"] = schema.medians.tolist()
    if schema is not None:
        preprocessing["dequantised"] = list(schema.dequantised)
        preprocessing["notices"] = [*schema.notices, *schema.warnings]
    about = {
        "sigma": density.noise.sigma,
        "sigma_unit": _sigma_unit(layer),
        "input_shape": list(density.data_shape),
        "columns": result.get("columns") if schema is None else list(schema.names),
        "condition_dim": density.condition_dim,
        "latent_dim": None if generator is None else generator.latent_dim,
        "preprocessing": preprocessing,
        "signatures": {name: _describe(function) for name, function in signatures.items()},
        "normalized": density.normalized,
        "log_partition": log_partition,
        "held_out": held_out,
        "normal": _normal(density, run),
        "errors": errors,
        "error_bound": bound,
        "data_hash": None if checksum is None else f"crc32:{checksum:08x}",
        "training": config or None,
        "versions": {"tfdde": __version__, **{m.__name__: m.__version__ for m in (tf, keras)}},
    }
    return about if choice is None else about | {"candidates": choice._asdict()}


def card(about: Mapping[str, Any]) -> str:
    """Return the model card of these facts, in Markdown.

    A line of the template that consists of an empty placeholder is left out.
    """
    conditions, sampler = about["condition_dim"], about["latent_dim"]
    one_step = "" if "candidates" in about else " in one step"
    words = {
        "sigma": f"{about['sigma']:.6g}",
        "sigma_unit": about["sigma_unit"],
        "conditions": f", given a condition of {conditions} numbers," if conditions else "",
        "sampler": f", and a sampler of the same density{one_step}" if sampler else "",
        "signatures": "\n".join(map(_signature, about["signatures"].items())),
        "columns": _columns(about),
        "candidates": _candidates(about.get("candidates")),
        "seeds": "- Equal seeds give equal samples." if sampler else "",
        "log_z": "\n".join(f"- {sentence}" for sentence in _log_z(about)),
        "held_out": _held_out(about["held_out"]),
        "alarm": _alarm(about["normal"]),
        "error_bound": f"{about['error_bound']:.0e}",
        "errors": _errors(about["errors"]),
        "data_hash": about["data_hash"] or "unknown",
        "training": _training(about["training"]),
        "weights": f"- Weights: {about['weights']}." if "weights" in about else "",
        "versions": ", ".join(" ".join(pair) for pair in about["versions"].items()),
        "between_conditions": (
            "- Between and beyond the conditions of the training rows, the density is extrapolated."
            if conditions
            else ""
        ),
        "sampler_limits": (
            "- The sampler may miss parts of the data. Its samples are without the noise."
            if sampler
            else ""
        ),
    }
    filled = []
    for line in TEMPLATE.read_text("utf-8").splitlines():
        result = Template(line).substitute(words)
        if result or not line:
            filled.append(result)
    return "\n".join(filled) + "\n"


def _sigma_unit(layer: Any) -> str:
    if layer is None:
        return "the data's own"
    unit = "standard deviations of the data"
    return f"{unit}, of columns with heavy tails those of their asinh" if has_tails(layer) else unit


def text(about: Mapping[str, Any]) -> str:
    """Return the facts as the text of ``metadata.json``."""
    lines = json.dumps(about, indent=2)
    # A list of numbers takes one line, not one for each number.
    return re.sub(r"\[\s+(-?\d[^][{}\"]*?)\s+\]", _on_one_line, lines) + "\n"


def _on_one_line(found: re.Match) -> str:
    return f"[{' '.join(found[1].split())}]"


def _as_json(value: Any) -> Any:
    """Return the value as JSON holds it: tuples become lists; NaN and infinity become null."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def _read(run: str | os.PathLike | None, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of the run folder; empty if there is no such file."""
    path = None if run is None else Path(run) / name
    if path is None or not path.exists():
        return {}
    return read_object(path)


def _normal(density: DDE, run: str | os.PathLike | None) -> dict[str, Any] | None:
    """What the rows that a run keeps tell of normal rows: numbers of columns, but no row."""
    path = None if run is None else Path(run) / FILE
    if path is None or not path.exists() or density.condition_dim:
        return None
    rows = NormalRows.load(path, math.prod(density.data_shape))
    x = rows.held_out.astype(density.row_dtype).reshape(-1, *density.data_shape)
    values = np.sort(np.asarray(log_density(density, x), np.float32))
    if not np.isfinite(values).all():
        raise ValueError(f"The density must be finite at the held-out rows of {path}.")
    found = threshold(-values.astype(np.float64), alarm_rate(len(values)))
    return {
        "ranges": [r._asdict() for r in ranges(rows.training)],
        "threshold": {
            "log_density": -found.value,
            **{name: getattr(found, name) for name in ("rate", "low", "high", "rows")},
        },
        # As many digits as float32 needs.
        "held_out_log_density": [float(f"{value:.9g}") for value in values],
    }


def _describe(function: Any) -> dict[str, dict[str, Any]]:
    """Return the names, types and shapes of a signature's inputs and outputs."""

    def describe_tensor(spec: Any) -> dict[str, Any]:
        return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}

    inputs = function.structured_input_signature[0]
    outputs = function.structured_outputs
    return {
        "inputs": {spec.name: describe_tensor(spec) for spec in inputs},
        "outputs": {name: describe_tensor(spec) for name, spec in outputs.items()},
    }


def _signature(item: tuple[str, Mapping[str, Any]]) -> str:
    """Return a signature as a row of the card's table."""
    name, description = item
    cells = (
        ", ".join(f"{tensor} {_shape(spec)}" for tensor, spec in description[side].items())
        for side in ("inputs", "outputs")
    )
    return f"| {name} | {' | '.join(cells)} |"


def _shape(spec: Mapping[str, Any]) -> str:
    sizes = ["rows" if size is None else str(size) for size in spec["shape"]]
    return f"{spec['dtype']}[{', '.join(sizes)}]"


def _log_z(about: Mapping[str, Any]) -> list[str]:
    log_z = about["log_partition"]
    if not about["normalized"]:
        estimates = [] if log_z is None else log_z.get("estimates", [log_z])
        doubts = sorted({e["doubt"] for e in estimates if "doubt" in e})
        reason = "".join(f" An estimate is doubted: {doubt}." for doubt in doubts)
        return [
            "UNNORMALISED: log-densities are known only up to a constant, since there is no "
            f"trusted log Z.{reason}"
        ]
    if "estimates" in log_z:
        pairs = zip(log_z["conditions"], log_z["estimates"], strict=True)
        known = [f"At the condition {c}: {_estimate(log_z_at_c)}" for c, log_z_at_c in pairs]
        return [*known, "At any other condition log Z is unknown, and log-densities are NaN."]
    return [_estimate(log_z)]


def _estimate(log_z: Mapping[str, Any]) -> str:
    return (
        f"Normalised: log Z = {log_z['value']:.4f} ± {log_z['standard_error']:.4f} nats "
        f"(95 %: {log_z['lower']:.4f} to {log_z['upper']:.4f}; {log_z['method']})."
    )


def _columns(about: Mapping[str, Any]) -> str:
    lines = [*about["preprocessing"].get("notices", ())]
    if about["columns"]:
        lines.insert(0, f"Columns, in this order: {', '.join(about['columns'])}.")
    return "\n".join(f"- {line}" for line in lines)


def _held_out(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not measured"
    return (
        f"{measured['log_likelihood']:.4f} ± {measured['standard_error']:.4f} nats per row "
        f"({measured['rows']} test rows)"
    )


def _candidates(choice: Mapping[str, Any] | None) -> str:
    if choice is None:
        return ""
    number, sigma = choice["number"], choice["sigma"]
    return (
        f"- Each sample is chosen from {number} candidates, in proportion to the learned ratio of "
        f"the densities of data and samples at σ = {sigma:.6g} (sampling-importance-resampling). "
        f"It costs {number} passes through the sampler's network and that of the ratio, and one "
        "more through the sampler's. `decode` chooses nothing."
    )


def _alarm(normal: Mapping[str, Any] | None) -> str:
    if normal is None:
        return ""
    known = dict(normal["threshold"])
    found = Threshold(-known.pop("log_density"), **known)
    return f"- {alarm_sentence(found, 'held-out')}"


def _errors(errors: Errors) -> str:
    nats = errors["log_density_nats"]
    shares = {name: error for name, error in errors.items() if name != "log_density_nats"}
    list_of_shares = ", ".join(f"{name} {error:.1e}" for name, error in shares.items())
    return f"{list_of_shares}; for the log-density near the data, {nats:.1e} nats"


def _training(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return "unknown"
    return f"`{' '.join(config.get('command', []))}`, started {config.get('started')}"
