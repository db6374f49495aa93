"""Error of the score in Keras's mixed precision (bfloat16), compared with float32.

    python benchmarks/precision.py

8 Gaussians, sigma = 0.2, 25 layers of 32 units, batches of 1,024 with antithetic noise. The error
of the score is its root mean square distance to the exact one, at 4,000 noisy points, as a share
of the exact score's root mean square. A third number is for float32 weights read in bfloat16. Adds
a row to results/precision.json.
"""

import argparse
import time

import keras
import numpy as np
import record

import tfdde
from tfdde import datasets, networks

TOY, SIGMA, POINTS, STEP = "eight_gaussians", 0.2, 4_000, 1e-4
FLOAT32, BFLOAT16 = "float32", "mixed_bfloat16"


def exact_score(x):
    """Return the score by central differences of the closed form, in float64."""
    ends = [
        [datasets.toy_log_density(TOY, x + sign * STEP * axis, SIGMA) for sign in (1, -1)]
        for axis in np.eye(2)
    ]
    return np.stack([(up - down) / (2 * STEP) for up, down in ends], axis=-1)


def build(policy):
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_dtype_policy(policy)
    network = networks.residual_mlp(2, 32, 25)
    keras.mixed_precision.set_dtype_policy(FLOAT32)
    base = tfdde.GaussianBase(2)
    base.adapt(datasets.sample_toy(TOY, 10_000, 0))
    return tfdde.DDE(network, tfdde.Constant(SIGMA), base, antithetic=True, seed=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3_000)
    steps = parser.parse_args().steps
    points = datasets.sample_toy(TOY, POINTS, 2).astype(np.float64)
    points += SIGMA * np.random.default_rng(3).standard_normal(points.shape)
    exact = exact_score(points)

    def error(model):
        difference = model.score(points).numpy() - exact
        return float(np.sqrt((difference**2).mean() / (exact**2).mean()))

    batches = datasets.stream(datasets.sample_toy(TOY, 1_000_000, 1), 1_024, 0)
    row, trained = {"steps": steps}, {}
    for policy in (FLOAT32, BFLOAT16):
        model = trained[policy] = build(policy)
        rate = keras.optimizers.schedules.CosineDecay(1e-2, steps)
        model.compile(tfdde.optimizers.FusedAdam(rate, use_ema=True, ema_momentum=0.99))
        model.fit(batches, steps_per_epoch=10, verbose=0)
        start = time.process_time()
        model.fit(batches, steps_per_epoch=steps - 10, verbose=2)
        row[f"{policy}_ms_a_step"] = 1e3 * (time.process_time() - start) / (steps - 10)
        row[f"{policy}_score_error"] = error(model)
    trained[BFLOAT16].set_weights(trained[FLOAT32].get_weights())
    row["float32_weights_in_bfloat16_score_error"] = error(trained[BFLOAT16])
    record.add("precision", {"name": f"{TOY}, sigma = {SIGMA}", "clock": "CPU", **row})


if __name__ == "__main__":
    main()
