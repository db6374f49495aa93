"""Mutation testing: the share of small faults, put into a module one at a time, that tests notice.

    python benchmarks/mutation.py models/dde --mutants 30 --skip 25

The faults are mutmut's (comparisons, arithmetic, numbers, booleans, names of options, an argument
dropped, a value None) and some more: a call whose value nobody uses removed, a condition negated,
None returned.  Left out is mutmut's argument that is None: it nearly always fails at once.  Not
mutated: docstrings, annotations, decorators, default arguments but names, numbers and strings,
``__repr__``, whatever stands in a ``raise`` or ``assert``, names of arguments given to checks, and
what is outside of functions.  A mutant is killed if a test fails, or takes too long.

Only the quick tests in ``TESTS`` are run, so the share is a lower bound of what all tests notice.
TensorFlow is imported once, and each mutant is tested in a process forked from there, before
TensorFlow starts any thread.  Needs ``pip install mutmut``.
"""

import argparse
import compileall
import difflib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The tests of each module of tfdde, the most specific file first: quick ones, which need no
# trained model.
PARTITION = {"partition/test_partition_parts.py": [""]}
DENSITY = {
    "models/test_settings.py": [
        "losses_of_a_density",
        "defaults",
        "a_density_comes_back_as_it_was_and_is_copied_so",
        "what_compile_was_told_comes_back",
        "bad_settings",
        "adapting_and_conditions_are_checked",
        "adapt_takes_the_moments_of_what_each_part_sees",
    ],
    "models/test_dde.py": [
        "loss_and_gradients_are_those_of_eq_10",
        "bad_arguments",
        "bad_networks",
        "start_at_the_independent_components_of_what_the_network_sees",
    ],
    "models/test_conditional.py": [
        "loss_is_that_of_eq_10_at_the_rows_own_conditions",
        "training_does_not_change_what_given_returned",
    ],
}
SAMPLER = {
    "models/test_settings.py": [
        "evaluation_of_a_sampler",
        "levels_of_the_updates_of_a_sampler",
        "one_step_of_all_three_networks",
        "defaults",
        "a_sampler_comes_back_as_it_was_and_is_copied_so",
        "what_compile_was_told_comes_back",
        "bad_settings",
        "parts_of_a_sampler_that_do_not_fit",
    ],
    "models/test_generator.py": [
        "one_step_is_algorithm_1",
        "generator_gradient_descends_the_kl_of_gaussians",
        "bad_arguments",
        "parts_that_do_not_fit",
    ],
    "models/test_generator_contract.py": [
        "samples",
        "rows_do_not_meet",
        "bad_input_is_refused",
    ],
    "models/test_conditional.py": [
        "sample_decode_interpolate_save_given",
        "parts_that_do_not_fit",
    ],
}
TESTS = {
    "noise": {
        "test_noise.py": [""],
        "models/test_dde.py": ["decay_trains_at_the_level_of_the_iteration"],
    },
    "partition/annealed": PARTITION,
    "partition/estimate": PARTITION,
    "partition/importance": PARTITION,
    "partition/ladder": PARTITION,
    "models/smoothed_density": DENSITY,
    "models/normalized_density": DENSITY,
    "models/dde": DENSITY,
    "models/generator": SAMPLER,
    "models/sampler": SAMPLER,
}
# Mutants that no test can kill, by their change, and why.
FLOAT = "a Python float becomes float32 anyhow"
STRICT = "there is a gradient for each variable"
EQUIVALENT = {
    "noise": {
        "- return tf.constant(self.sigma, tf.float32) + return tf.constant(self.sigma, )": FLOAT,
    },
    "models/dde": {
        "- optimizer.apply_gradients(zip(gradients, self.network.trainable_variables, strict=True))"
        " + optimizer.apply_gradients(zip(gradients, self.network.trainable_variables, ))": STRICT,
    },
}


def operators():
    """Return triples: kind, type of node, and a function that yields replacements of a node."""
    import libcst as cst
    from mutmut.mutation import mutators

    def one_string(node):
        yield from list(mutators.operator_string(node))[:1]

    def argument_removed(node):
        for other in mutators.operator_arg_removal(node):
            if len(other.args) < len(node.args):
                yield other

    def removed(node):
        if isinstance(node.value, cst.Call):
            yield cst.Pass()

    def negated(node):
        test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))

    def none(node):
        if node.value is not None and getattr(node.value, "value", None) != "None":
            yield node.with_changes(value=cst.Name("None"))

    mutations = [(cst.Expr, removed), (cst.If, negated), (cst.Return, none)]
    own = {
        mutators.operator_string: one_string,
        mutators.operator_arg_removal: argument_removed,
    }
    for node, mutate in mutators.mutation_operators:
        mutations.append((node, own.get(mutate, mutate)))
    return [(mutate.__name__.removeprefix("operator_"), node, mutate) for node, mutate in mutations]


def mutants(source):
    """Return all mutated sources that compile, with their kinds, in the order of the source."""
    import libcst as cst

    known, replacements = operators(), []

    def strings(call):
        return [arg.value for arg in call.args if isinstance(arg.value, cst.SimpleString)]

    class Visitor(cst.CSTVisitor):
        functions = 0  # around the node

        def on_visit(self, node):
            if isinstance(node, cst.FunctionDef):
                self.functions += 1
                return node.name.value != "__repr__"
            call = getattr(getattr(node, "func", None), "value", None)
            checks = isinstance(call, str) and call.startswith(("check_", "to_rows"))
            if (
                isinstance(node, cst.Annotation | cst.Decorator | cst.Raise | cst.Assert)
                or (isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString))
                or call in ("len", "isinstance")
                or node in names
            ):
                return False
            if isinstance(node, cst.Param) and not isinstance(
                node.default, cst.Name | cst.BaseNumber | cst.BaseString | None
            ):
                return False
            if checks:
                names.update(strings(node))
            if self.functions:
                replacements.extend(
                    (kind, node, other)
                    for kind, type_, mutate in known
                    if isinstance(node, type_)
                    for other in mutate(node)
                    if not checks or strings(other) == strings(node)
                )
            return True

        def on_leave(self, node):
            self.functions -= isinstance(node, cst.FunctionDef)

    names = set()  # of arguments, that only messages show
    module = cst.parse_module(source)
    module.visit(Visitor())
    codes = {}
    for kind, node, other in replacements:
        code = module.deep_replace(node, other).code
        try:
            compile(code, "mutant", "exec", dont_inherit=True)
        except SyntaxError:
            continue
        if code != source:
            codes.setdefault(code, kind)
    return list(codes.items())


def change(source, mutant):
    """Return the line number and the lines that differ, as text."""
    lines = list(difflib.unified_diff(source.splitlines(), mutant.splitlines(), lineterm="", n=0))
    number = re.match(r"@@ -(\d+)", lines[2])[1]
    text = [line[0] + " " + line[1:].strip() for line in lines[3:] if line[:2] != "@@"]
    return f"{number}: " + " ".join(text)


class Plugin:
    """Plugin of pytest that runs the quick tests of each file first.

    It writes the seconds of each test and the name of a failed one to files.
    """

    def __init__(self, seconds, folder):
        self.seconds, self.folder, self.took = seconds, folder, {}

    def pytest_collection_modifyitems(self, items):
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda i: (files.index(i.path), self.seconds.get(i.nodeid, 0.0)))

    def pytest_runtest_logreport(self, report):
        self.took[report.nodeid] = self.took.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            (self.folder / "failed").write_text(report.nodeid)

    def pytest_sessionfinish(self):
        (self.folder / "seconds.json").write_text(json.dumps(self.took))


def run(package, tests, seconds, folder, limit):
    """Run the tests in a forked process; return its exit code, None if it took too long."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 99
        try:
            import pytest

            os.environ["PYTHONPATH"] = str(package)
            sys.dont_write_bytecode = True
            os.chdir(ROOT)
            options = ["-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
            options += ["-o", f"pythonpath={package} train benchmarks"]
            code = pytest.main([*options, *tests], [Plugin(seconds, folder)])
            loaded = getattr(sys.modules.get("tfdde"), "__file__", None)
            if code == 0 and Path(loaded).parent.parent != package:
                code = 98
        finally:
            os._exit(int(code))
    end = time.time() + limit
    while time.time() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def ids(module):
    """Return the tests of a module as arguments of pytest."""
    return [
        f"tests/{file}" + (f"::test_{name}" if name else "")
        for file, names in TESTS[module].items()
        for name in names
    ]


def baseline(package, tests, folder):
    """Return the seconds of each test on the package as it is, where all must pass."""
    code = run(package, tests, {}, folder, 3600)
    if code != 0:
        raise SystemExit((folder / "log").read_text()[-3000:])
    return json.loads((folder / "seconds.json").read_text())


def test(module, count, skip, seed):
    """Test ``count`` mutants of a module in a random order, and return a row of results."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy would start threads as it is imported

    import keras  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats
    import tensorflow  # noqa: F401

    started = Path("/proc/self/task")
    assert not started.exists() or len(list(started.iterdir())) < 4, "fork before any thread starts"
    source = (ROOT / "tfdde" / f"{module}.py").read_text()
    every = mutants(source)
    order = random.Random(seed).sample(every, len(every))[skip : skip + count]
    counts = {"killed": 0, "timeout": 0, "equivalent": 0, "survived": 0}
    kinds: dict[str, list[int]] = {}
    tests, survivors, start = ids(module), {}, time.time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        package = folder / "package"
        shutil.copytree(
            ROOT / "tfdde", package / "tfdde", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("train", "export"):
            (package / name).symlink_to(ROOT / name)
        compileall.compile_dir(package / "tfdde", quiet=1)
        path = package / "tfdde" / f"{module}.py"
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        seconds = baseline(package, tests, folder)
        limit = 4 * sum(seconds.values()) + 60
        print(f"{module}: {len(every)} mutants, tests of {sum(seconds.values()):.0f} s", flush=True)
        for mutant, kind in order:
            (folder / "failed").unlink(missing_ok=True)
            path.write_text(mutant)
            began = time.time()
            code = run(package, tests, seconds, folder, limit)
            what = change(source, mutant)
            why = EQUIVALENT.get(module, {}).get(what.partition(": ")[2])
            if code in (98, 99):
                raise SystemExit((folder / "log").read_text()[-3000:])
            if code == 0:
                result = "equivalent" if why else "survived"
                survivors[what] = why or "survived"
            else:
                result = "timeout" if code is None else "killed"
            counts[result] += 1
            if result != "equivalent":
                of_kind = kinds.setdefault(kind, [0, 0])
                of_kind[0] += result != "survived"
                of_kind[1] += 1
            by = (folder / "failed").read_text() if (folder / "failed").exists() else ""
            print(f"{result} {time.time() - began:.0f} s  {what}  {by}", flush=True)
    killed = counts["killed"] + counts["timeout"]
    total = len(order) - counts["equivalent"]
    interval = scipy.stats.binomtest(killed, total).proportion_ci()
    return {
        "name": f"{module}, seed {seed}, {len(order)} after {skip}",
        "mutants": len(every),
        "tried": len(order),
        **counts,
        "share_killed": killed / total,
        "interval": [interval.low, interval.high],
        "killed_of_tried": {kind: kinds[kind] for kind in sorted(kinds)},
        "not_killed": survivors,
        "tests": tests,
        "seconds": round(time.time() - start),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("--mutants", type=int, default=25)
    parser.add_argument("--skip", type=int, default=0, help="so many first ones of the order")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--only-print", action="store_true", help="leave results/ as it is")
    args = parser.parse_args()
    row = test(args.module, args.mutants, args.skip, args.seed)
    if args.only_print:
        print(json.dumps(row, indent=1))
        return
    import record  # not before: it imports tfdde

    record.add("mutation", row)


if __name__ == "__main__":
    main()
