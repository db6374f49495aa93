"""A training step of `step_time.py` as one XLA program, to be measured by JAX on another machine.

    python benchmarks/step_hlo.py export step.npz --case "2-D"
    python benchmarks/step_hlo.py measure step.npz

`export` needs TensorFlow. It writes the whole step, Adam and noise included, as XLA's HLO, with the
values of its variables, a batch, and the losses of the first steps on this batch as TensorFlow
finds them by the same program: XLA's noise is not that of TensorFlow's own operations with the same
seed. `measure` needs JAX and NumPy only, and turns the HLO into StableHLO for the device that JAX
has. It makes the same steps, stops if the losses differ, and prints the time of a step, each of
which goes on from the variables of the one before.
"""

import argparse
import json
import re
import statistics
import sys
import time

import numpy as np

CHECKED = 4  # steps whose losses are compared
TOLERANCE = 1e-4  # relative, of losses
SECONDS = 0.5  # of a round
ALIAS = re.compile(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)")


def export(path, case):
    """Write the step of a case, and return the losses."""
    import keras
    import step_cases
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = step_cases.tfdde_model(case)
    x = tf.constant(step_cases.rows_of(case, case["batch"]))
    compiled = tf.function(model.train_step, autograph=False, jit_compile=True)
    program = compiled.experimental_get_compiler_ir(x)
    graph = compiled.get_concrete_function(x).graph
    # Variables that an operation updates by their handle are not among those of the graph.
    updated = [v.value for optimizer, *_ in model.trained_parts() for v in optimizer.variables]
    by_handle = {id(v.handle): v for v in [*graph.variables, *updated]}
    values = [by_handle[id(capture)].numpy() for capture, _ in graph.captures]
    # Which output is the new value of which input.
    aliases = np.int64(ALIAS.findall(program(stage="hlo").partition("\n")[0]))
    losses = [[float(loss) for loss in tf.nest.flatten(compiled(x))] for _ in range(CHECKED)]
    arrays = {f"input_{k}": value for k, value in enumerate([x.numpy(), *values])}
    np.savez_compressed(
        path,
        program=np.frombuffer(program(stage="hlo_serialized"), np.uint8),
        aliases=aliases,
        losses=losses,
        **arrays,
    )
    return losses


def load(path):
    """Return a function that makes one step and returns its losses, and TensorFlow's losses."""
    import jax
    from jax.extend.backend import get_backend
    from jax.extend.mlir import hlo_to_stablehlo

    jax.config.update("jax_enable_x64", True)  # or it would round counters of 64 bits
    with np.load(path) as file:
        arrays = dict(file)
    count = sum(name.startswith("input_") for name in arrays)
    inputs = [jax.device_put(arrays[f"input_{k}"]) for k in range(count)]
    program = hlo_to_stablehlo(arrays["program"].tobytes())
    executable = get_backend().compile_and_load(program, jax.devices()[:1])
    losses = arrays["losses"]

    def step():
        outputs = executable.execute(inputs)
        for output, place in arrays["aliases"]:
            inputs[place] = outputs[output]
        return outputs[: losses.shape[1]]

    return step, losses


def measure(path, rounds):
    """Check the losses, and return the milliseconds of a step in each round."""
    import jax

    step, expected = load(path)
    found = np.array([[float(loss) for loss in step()] for _ in expected])
    if not np.allclose(found, expected, rtol=TOLERANCE, atol=0):
        sys.exit(f"The losses {found.tolist()} differ from TensorFlow's, {expected.tolist()}.")
    times = []
    for _ in range(rounds):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            jax.block_until_ready(step())
            count += 1
        times.append(1e3 * (time.perf_counter() - start) / count)
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "rounds": rounds,
        "ms": [round(f(times), 3) for f in (statistics.median, min, max)],
        "losses": found.tolist(),
        "largest_relative_difference": float(np.max(np.abs(found / expected - 1))),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("export", "measure"))
    parser.add_argument("file")
    parser.add_argument("--case", default="2-D", help="beginning of its name, for export")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.what == "measure":
        print(json.dumps(measure(args.file, args.rounds), indent=1))
        return
    from step_cases import CASES

    matching = [name for name in CASES if name.startswith(args.case)]
    if len(matching) != 1:
        parser.error(f"--case {args.case!r} must begin one name of {', '.join(CASES)}")
    print(json.dumps({"case": matching[0], "losses": export(args.file, CASES[matching[0]])}))


if __name__ == "__main__":
    main()
