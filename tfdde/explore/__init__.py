"""A page that runs a trained model in the browser: ``python -m tfdde.explore RUN``."""

from tfdde.explore.page import fetch_litert, write_page

__all__ = ["fetch_litert", "write_page"]
