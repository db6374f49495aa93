"""Log-densities of the rows of files of any size: in constant memory, resumable after any kill."""

from tfdde.scoring.file_scores import score_file
from tfdde.scoring.scorer import Scorer

__all__ = ["Scorer", "score_file"]
