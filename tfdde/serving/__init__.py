"""Export of a trained density and its generator, to SavedModel, TFLite and ONNX.

All artifacts have the same named signatures. Each takes any number of rows, including none:

    log_density   x float32[rows, *shape] -> log_density float32[rows]
    score         x float32[rows, *shape] -> score float32[rows, *shape]
    log_density_float64, score_float64: the same of x float64   (SavedModel, ONNX)
    decode        z float32[rows, latent_dim] -> x float32[rows, *shape]
    sample        num int32[], seed int64[] (TFLite, ONNX: int32[]) -> x float32[num, *shape]
    sample_rows   seed int64[rows] -> x float32[rows, *shape]   (SavedModel only)

The signatures of float64 rows need a ``normalization``; it subtracts the mean in float64.
``decode``, ``sample`` and ``sample_rows`` need a generator.  ``sample_rows`` takes one seed for
each row: a row depends on its own seed alone, so a server can join the requests of several callers
into one batch.  Exported with ``candidates``, ``sample`` and ``sample_rows`` choose each sample
from several, as ``Generator.sample_from_candidates`` does.  The signatures of conditional models
take another input, ``condition`` float32[rows, k] (``sample``: [num, k]).

The log-density is normalised if the density has a trusted log Z; the metadata give log Z and its
error.  For a conditional density this holds at each condition whose log Z was found; at any other
condition the result is NaN.  Rows are in the data's own units: standardisation, sigma and log Z
are part of the model.  Inputs are not checked as in Keras: NaN in a row gives NaN for that row
only.

An artifact is first written under a temporary name, loaded again and compared with Keras.  It
takes its place only if it agrees.  ``metadata.json`` and ``model_card.md`` describe it.
"""

from tfdde.serving.onnx import export_onnx
from tfdde.serving.run_models import export_run, load_run
from tfdde.serving.savedmodel import export_savedmodel
from tfdde.serving.signatures import BOUND
from tfdde.serving.tflite import FLOAT16_BOUND, export_tflite
from tfdde.serving.verify import ExportError

__all__ = [
    "BOUND",
    "FLOAT16_BOUND",
    "ExportError",
    "export_onnx",
    "export_run",
    "export_savedmodel",
    "export_tflite",
    "load_run",
]
