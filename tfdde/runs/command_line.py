"""What the command lines of the training scripts share: options, presets, errors, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from tfdde.models.fit_callbacks import DivergedError
from tfdde.runs import cluster
from tfdde.runs.cluster import RunError
from tfdde.runs.interrupts import Signals
from tfdde.runs.run import NOT_COMPARED
from tfdde.utils.checks import check_integer, check_positive
from tfdde.utils.files import read_object

# Exit codes: of a program that SIGINT ended, of one that SIGTERM did, and of a worker that lost
# another.
INTERRUPTED, TERMINATED, LOST = 130, 143, 3


def command(script: Callable[..., bool]) -> Callable[..., int]:
    """Turn the ``main`` of a script into one that returns an exit code.

    What a user can cause ends in one sentence.  SIGTERM does as Ctrl-C does, outside of the
    training too.

    Args:
        script: function that returns False if Ctrl-C or SIGTERM ended the training.

    Returns:
        A function of the same arguments that returns 0, 1 (the training diverged), 2 (the
        data or the run folder are not right), 3 (another worker was lost), 130 (Ctrl-C) or 143
        (SIGTERM).
    """

    @wraps(script)
    def main(*args: Any, **kwargs: Any) -> int:
        print_any_character()
        with Signals() as signals:
            try:
                if script(*args, **kwargs):
                    return 0
            except KeyboardInterrupt:
                pass
            except DivergedError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            except (RunError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except cluster.LOST as error:
                if cluster.this_cluster().workers == 1:
                    raise
                reason = str(error).strip().partition("\n")[0]
                print(
                    "error: another worker was lost; the last checkpoint is whole: start all of "
                    f"them again with --resume ({type(error).__name__}: {reason}).",
                    file=sys.stderr,
                )
                return LOST
            print("To continue, run the same command with --resume.")
            return TERMINATED if signals.last == signal.SIGTERM else INTERRUPTED

    return main


def print_any_character() -> None:
    """Let ``print`` write escapes for characters that the encoding of the output does not have.

    Python would raise UnicodeEncodeError instead, for "±" or "σ" at the end of a long training.
    """
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Context in which a ValueError or ImportError becomes a ``RunError``, so one sentence."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise RunError(str(error)) from None


def add_run_options(parser: argparse.ArgumentParser, output: str, seed: str) -> None:
    """Add the options of every training: --output, --resume, --seed, --jit.

    Args:
        parser: of the script.
        output: the default folder, for the help.
        seed: what the seed fixes, for the help.
    """
    add = parser.add_argument
    add("--output", help=f"folder of this run (None: {output})")
    add("--resume", action="store_true", help="continue the run in --output")
    add("--seed", type=int, default=0, help=seed)
    add("--jit", action=argparse.BooleanOptionalAction, default=True, help="compile by XLA")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --devices, for ``strategy_for``."""
    text = "devices to share a batch (None: all GPUs)"
    parser.add_argument("--devices", nargs="+", metavar="GPU:0", help=text)


def add_generator_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on how a generator's s_q - s_p and g are learned."""
    kinds = ("denoising", "logistic")
    parser.add_argument("--ratio", choices=kinds, default=kinds[0], help="how s_q - s_p is learned")
    text = "share of the forward KL in what g minimises, with --ratio logistic"
    parser.add_argument("--forward", type=float, default=0.0, help=text)
    text = "update both from one pass through both networks, with --ratio logistic"
    kind = argparse.BooleanOptionalAction
    parser.add_argument("--one-stage", action=kind, default=False, help=text)
    text = "momentum of the averages of g's weights"
    parser.add_argument("--ema", type=positive_float, default=0.998, help=text)


def add_candidate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an export whose samples are chosen from candidates."""
    text = "that each sample is chosen from by the generator's log-ratio (default: 1, no choice)"
    parser.add_argument("--candidates", metavar="K", type=positive_int, default=1, help=text)
    text = "noise level at which candidates are compared (default: the middle of those trained)"
    parser.add_argument("--compare-at", metavar="SIGMA", type=positive_float, help=text)


def check_generator_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error if the options of ``add_generator_options`` can't be."""
    if not 0 <= args.forward <= 1:
        parser.error(f"--forward must be from 0 to 1, got {args.forward:g}")
    if args.forward and args.ratio != "logistic":
        parser.error(f"--forward {args.forward:g} needs --ratio logistic; else it must be 0")
    if args.one_stage and (args.ratio != "logistic" or args.dde_steps != 1):
        parser.error(
            "--one-stage needs --ratio logistic and --dde-steps 1, got "
            f"{args.ratio} and {args.dde_steps}"
        )
    if args.ema >= 1:
        parser.error(f"--ema must be below 1, got {args.ema:g}")


def add_table_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add the options that name a table: --data or --dataset, --columns, --data-dir.

    Args:
        parser: of the script.
        names: choices of --dataset.
    """
    source, add = parser.add_mutually_exclusive_group(), parser.add_argument
    source.add_argument("--data", metavar="FILE", help="table: .csv, .parquet, .npy or .npz")
    source.add_argument("--dataset", choices=names, help="or a known one")
    add("--columns", nargs="+", metavar="NAME", help="columns of --data (None: all)")
    add("--data-dir", help="folder with the files of --dataset")


def check_table_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Return the name of the table, or end in an error of the parser."""
    if not (args.data or args.dataset):
        parser.error("one of the arguments --data --dataset is required")
    if args.columns and not args.data:
        parser.error("--columns needs --data")
    return args.dataset or Path(args.data).name.partition(".")[0]


def preset_parser(folder: Path, default: str | None) -> argparse.ArgumentParser:
    """Return a parser of --preset alone, a parent of the parser of a script.

    Args:
        folder: with a JSON file for each preset, of the form of a run's ``config.json``.
        default: name of the preset without the option.
    """
    names = ", ".join(sorted(path.stem for path in folder.glob("*.json")))

    def preset(name: str) -> str:
        if not _preset_path(folder, name).is_file():
            raise argparse.ArgumentTypeError(
                f"invalid choice: {name!r} (choose from {names}, or the config.json of a run)"
            )
        return name

    parser = argparse.ArgumentParser(add_help=False)
    text = f"choice of defaults: {names}, or the config.json of a run"
    parser.add_argument("--preset", metavar="NAME", type=preset, default=default, help=text)
    return parser


def _preset_path(folder: Path, name: str) -> Path:
    path = folder / f"{name}.json"
    return path if path.is_file() else Path(name)


def read_preset(folder: Path, name: str, default: str) -> dict[str, Any]:
    """Return the settings of a preset by their names.

    Args:
        folder: with the presets of the script.
        name: of a preset, or the path of the ``config.json`` of a run.
        default: name of the preset from which the settings come that the other leaves out.

    Raises:
        RunError: the file is no such JSON.
    """
    settings: dict[str, Any] = {}
    for path in (_preset_path(folder, default), _preset_path(folder, name)):
        with user_errors():
            arguments = read_object(path).get("arguments")
            if not isinstance(arguments, dict):
                raise ValueError(f'{path} must hold an object "arguments", as a config.json does.')
        settings |= arguments
    return {k: v for k, v in settings.items() if k not in (*NOT_COMPARED, "checksum")}


def set_preset(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    """Make the settings of a preset the parser's defaults; wrong ones are its errors."""
    options: list[str] = []
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, list):
            options += [option, *map(str, value)]
        elif value is True:
            options.append(option)
        elif value is not None and value is not False:
            options.append(f"{option}={value}")
    checked = vars(parser.parse_args(options))
    if unknown := settings.keys() - checked.keys():
        parser.error(f"--preset has settings that this script does not: {sorted(unknown)}")
    parser.set_defaults(**{k: checked[k] if v else v for k, v in settings.items()})


def with_checksum(args: argparse.Namespace, x: np.ndarray) -> dict[str, Any]:
    """Return the arguments for ``Run``; a run is then not resumed on other data than ``x``."""
    return vars(args) | {"checksum": zlib.crc32(x.tobytes())}


def positive_int(text: str) -> int:
    """Return an integer >= 1, as the ``type`` of an option."""
    try:
        return check_integer(int(text), "value")
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}") from None


def positive_float(text: str) -> float:
    """Return a finite number > 0, as the ``type`` of an option."""
    try:
        return check_positive(float(text), "value")
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a finite number > 0, got {text!r}") from None
