"""Log-densities of the rows of files of any size.

``Scorer`` runs a model on batches of rows. ``score_file`` runs it on files, in constant memory, and
goes on after any interruption; ``manifest`` keeps what its output was made from. ``score_pipe``
reads standard input or writes standard output. ``file_drift`` tells whether a file has changed.
"""

from tfdde.scoring.file_drift import file_drift
from tfdde.scoring.file_scores import score_file
from tfdde.scoring.pipes import score_pipe
from tfdde.scoring.scorer import Scorer

__all__ = ["Scorer", "file_drift", "score_file", "score_pipe"]
