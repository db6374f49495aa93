"""For tests of scoring: models in closed form, and tables in files of all formats."""

import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.stats import multivariate_normal

MEAN = np.array([1.0, -2.0, 0.5])


class Gaussian(tf.Module):
    """log N(x; mean, I); conditional: the condition is the mean, and must not be negative."""

    def __init__(self):
        super().__init__()
        self.mean = tf.Variable(MEAN, dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])
    def log_density(self, x):
        constant = 1.5 * np.log(2 * np.pi).astype(np.float32)
        return {"log_density": -0.5 * tf.reduce_sum((x - self.mean) ** 2, axis=1) - constant}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 3), tf.float32, name="x"),
            tf.TensorSpec((None, 1), tf.float32, name="condition"),
        ]
    )
    def conditional(self, x, condition):
        values = self.log_density(x - condition + self.mean)["log_density"]
        return {"log_density": tf.where(condition[:, 0] < 0, np.nan, values)}


def save_models(folder):
    """SavedModels "normalized", "unknown" (without metadata) and "conditional".

    Each is a folder of two versions, 9 with another mean.
    """
    module = Gaussian()
    for name in ("normalized", "unknown", "conditional"):
        function = module.conditional if name == "conditional" else module.log_density
        for version in ("9", "10"):
            module.mean.assign(MEAN if version == "10" else MEAN + 1)
            path = folder / name / version
            tf.saved_model.save(module, str(path), signatures={"log_density": function})
            if name != "unknown":
                (path / "assets.extra").mkdir()
                (path / "assets.extra" / "metadata.json").write_text('{"normalized": true}')
    return folder


def frame(rows=1_000, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    table = pd.DataFrame(x, columns=["a", "b", "c"])
    table["id"] = [f"row {i}, {seed}" for i in range(rows)]
    return table


def truth(table):
    return multivariate_normal(MEAN).logpdf(table[["a", "b", "c"]].to_numpy(np.float64))


def example(x, **features):
    made = {"x": tf.train.Feature(float_list=tf.train.FloatList(value=x))} if x is not None else {}
    for name, value in features.items():
        made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def write(path, table):
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=300)
    elif ".csv" in path.name:
        table.to_csv(path, index=False)
    else:
        options = "GZIP" if path.suffix == ".gz" else None
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for *x, name in table.itertuples(index=False):
                writer.write(example(x, id=name.encode()))
    return path


def read(path):
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".csv":
        return pd.read_csv(path)
    rows = []
    for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        features = tf.train.Example.FromString(raw).features.feature
        assert set(features) == {"row", "log_density", "id"}
        (row,) = features["row"].int64_list.value
        (value,) = features["log_density"].float_list.value
        (name,) = features["id"].bytes_list.value
        rows.append((row, value, name.decode()))
    return pd.DataFrame(rows, columns=["row", "log_density", "id"])


def rejects(out):
    table = pd.read_csv(f"{out}.rejects.csv")
    assert list(table) == ["row", "reason"]
    return dict(zip(table["row"], table["reason"], strict=True))
