"""Export of a trained density and its generator, to SavedModel and TFLite.

Both artifacts have the same named signatures, for any number of rows, also none:

    log_density   x float32[rows, *shape] -> log_density float32[rows]
    score         x float32[rows, *shape] -> score float32[rows, *shape]
    decode        z float32[rows, latent_dim] -> x float32[rows, *shape]
    sample        num int32[], seed int64[] (TFLite: int32[]) -> x float32[num, *shape]
    sample_rows   seed int64[rows] -> x float32[rows, *shape]   (SavedModel only)

The last three are there if a generator is.  ``sample_rows`` has one seed for each row, so that a
server can batch the requests of several callers: a row depends on its own seed alone.  The
signatures of conditional models take another input ``condition`` float32[rows, k] (``sample``:
[num, k]).  The log-density is normalised if the density has a trusted log Z, which the metadata
tell with its error, and otherwise not; that of a conditional density if it has one at each
condition asked for, and then it is NaN at any other.
Rows are in the data's own units: standardisation, sigma and log Z are inside.
Inputs are not checked as Keras's are: NaN in a row gives NaN out, in that row alone.
An artifact is written beside its place, loaded again, compared with Keras, and put
in place only if it agrees.  It carries its description, ``metadata.json`` and ``model_card.md``.
"""

from tfdde.serving.run_models import export_run, load_run
from tfdde.serving.savedmodel import export_savedmodel
from tfdde.serving.signatures import BOUND
from tfdde.serving.tflite import FLOAT16_BOUND, export_tflite
from tfdde.serving.verify import ExportError

__all__ = [
    "BOUND",
    "FLOAT16_BOUND",
    "ExportError",
    "export_run",
    "export_savedmodel",
    "export_tflite",
    "load_run",
]
