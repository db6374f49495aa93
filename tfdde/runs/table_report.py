"""report.md: a page on the density of a table, with pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfdde import plots
from tfdde.anomalies import drift, threshold
from tfdde.anomalies.report import alarm_rate, drift_sentence, strange_rows
from tfdde.models.dde import DDE
from tfdde.models.sampling import sample_rows
from tfdde.utils.files import atomic

SAMPLES = 2_000  # drawn from the density, and the most rows that they are compared with
PANELS, PAIRED = 12, 4  # the most columns with a marginal, and in pairs


def write_report(
    folder: Path,
    dde: DDE,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    columns: Sequence[str],
    text: str,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Write ``report.md``: likelihood, samples, strange rows, and change from training to test.

    Args:
        folder: of the run. Its ``sigma.png``, ``log_density.png`` and ``losses.png`` are shown if
            they are there; ``marginals.png``, ``pairs.png`` and ``scores.png`` are written.
        dde: the density.
        rows: training, validation and test rows, as new rows will come to be scored.
        columns: their names.
        text: on the likelihood, paragraphs a line each.
        notes: on the columns, a sentence each.
        seed: of samples and permutations.
    """

    def log_density(x: np.ndarray) -> np.ndarray:
        return dde.log_density(x, normalized=dde.normalized).numpy().astype(np.float64)

    train, validation, test = rows
    parts = [f"# {folder.resolve().name}", *text.split("\n")]
    parts += _pictures(folder, "sigma", "log_density", "losses")
    if notes:
        parts += ["## Columns", "\n".join(f"- {note}" for note in notes)]
    if not all(map(len, rows)):
        parts.append("Every row of one part misses a value: there are no more pictures.")
    else:
        samples = sample_rows(dde, train, SAMPLES, seed=seed)
        parts += ["## Samples", _draw_samples(folder, dde, train, samples, columns)]
        parts += _pictures(folder, "marginals", "pairs")
        parts += ["## Strange rows", strange_rows(log_density, test, validation, train, columns)]
        scores = {"validation rows": log_density(validation), "test rows": log_density(test)}
        _draw_scores(folder, dde, scores)
        parts += _pictures(folder, "scores")
        learned, unseen = train[:SAMPLES], test[:SAMPLES]
        kinds = f"{len(learned)} training rows", f"{len(unseen)} test rows"
        found = drift(learned, unseen, seed=seed)
        parts += ["## Training and test rows", drift_sentence(found, columns, *kinds)]
    with atomic(folder / "report.md") as path:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _draw_samples(
    folder: Path, dde: DDE, train: np.ndarray, samples: np.ndarray, columns: Sequence[str]
) -> str:
    """Draw marginals and pairs; return what is to be said of them."""
    said = (
        f"{len(samples)} samples of the density, which is blurred by σ = {dde.noise.sigma:.3g}, "
        "and training rows."
    )
    shown = slice(None, PANELS)
    plots.marginals(folder / "marginals.png", train[:, shown], samples[:, shown], columns[shown])
    if len(columns) > PANELS:
        said += f" Of {len(columns)} columns the first {PANELS} have a marginal."
    if len(columns) > 1:
        chosen = list(range(len(columns)))
        if len(columns) > PAIRED:
            some = train[:SAMPLES]
            score = dde.score(some).numpy().astype(np.float64) * some.std(axis=0)
            chosen = sorted(np.argsort(-score.var(axis=0), kind="stable")[:PAIRED].tolist())
        names = [columns[j] for j in chosen]
        plots.pairs(folder / "pairs.png", train[:SAMPLES, chosen], samples[:, chosen], names)
        if len(columns) > PAIRED:
            said += (
                f" In pairs: the {PAIRED} columns whose score, the gradient of the log-density in "
                "standard deviations, varies most, since the other columns fix them best: "
                f"{', '.join(f'`{name}`' for name in names)}."
            )
    return said


def _draw_scores(folder: Path, dde: DDE, scores: dict[str, np.ndarray]) -> None:
    """Draw log-densities of held-out rows, and the threshold with the interval of its rate."""
    validation = scores["validation rows"]
    found = threshold(-validation, alarm_rate(len(validation)))
    interval = f"95 %: {100 * found.low:.2g} to {100 * found.high:.2g} %"
    mark = -found.value, f"threshold: {100 * found.rate:.2g} % below\n({interval})"
    kind = "log-density" if dde.normalized else "UNNORMALISED log-density"
    plots.histograms(folder / "scores.png", scores, f"{kind} in nats", mark)


def _pictures(folder: Path, *names: str) -> list[str]:
    return [f"![{name}]({name}.png)" for name in names if (folder / f"{name}.png").is_file()]
