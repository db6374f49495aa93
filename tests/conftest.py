import gc
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Two processes of one thread each: with TensorFlow's two threads in both of them, a sixth of the
# time goes into handing small operations from one to the other. Scripts in tests inherit it.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
# The same for NumPy, SciPy (OpenBLAS) and scikit-learn (OpenMP), before they are imported: threads
# that wait for each other while both cores are busy took 0.4 to 4 s for the eigenvectors of
# 784 x 784 numbers, which one thread finds in 0.08 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import pytest
import tensorflow as tf

# Two logical devices, for the tests of tf.distribute; must come before anything runs.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


# Files that take longest start first, so that two processes end at about the same time.
LONGEST = (
    "train/test_train_scripts.py",
    "test_sklearn.py",
    "tuning/test_search.py",
    "models/test_conditional.py",
    "models/test_contrast.py",
    "train/test_tabular_script.py",
    "models/test_density_contract.py",
    "partition/test_from_above.py",
    "test_docs.py",
    "partition/test_partition.py",
    "runs/test_cluster.py",
    "serving/test_serving.py",
    "models/test_generator_contract.py",
    "partition/test_far_field.py",
    "tuning/test_search_script.py",
    "models/test_training_arguments.py",
    "tables/test_tails.py",
    "benchmarks/test_mlserver_load.py",
    "models/test_sampling.py",
    "serving/test_runtimes.py",
    "scoring/test_scoring_resume.py",
    "runs/test_runs.py",
    "models/test_correction_cap.py",
    "partition/test_to_precision.py",
    "models/test_distribution.py",
    "benchmarks/test_image_density.py",
    "datasets/test_file_batches.py",
    "serving/test_mlserver.py",
)


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))  # others keep their order


# A trace makes some 10,000 objects that stay. With Python's 700 half of the time of garbage
# collections, which was a twentieth of the tests', went into looking at them again and again.
gc.set_threshold(50_000, 20, 50)


def pytest_collection_finish():
    """What is imported stays: the garbage collection before each test need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh():
    """The same seeds and layer names for each test."""
    # A garbage collection before each test took a tenth of the time: one after each file will do.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def collect_garbage():
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def two():
    """One strategy for all tests: a second one would number its collectives like the first."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def exact(tmp_path_factory):
    """A folder of SavedModels of exact densities; see scored.py."""
    import scored

    return scored.save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of few rows, so that the tests' files have many."""
    from tfdde.datasets.readers import blocks

    monkeypatch.setattr(blocks, "BLOCK_ROWS", 64)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3_000)
