"""Estimates of log Z, the constant that makes e^s a density, with their errors.

All methods take any log-density s(x, sigma) that is known up to a constant at each sigma, of data
x ~ p with noise of N(0, sigma**2 I):

- ``ladder.ladder``: bridge sampling between neighbouring noise levels, up to one where the data
  with noise are nearly Gaussian, and from there to a normalised density.
- ``importance.importance``: importance sampling from one normalised density, as in the paper;
  ``from_base.from_base``: from the base that s corrects, where it is near enough.
- ``annealed.annealed``: annealed importance sampling, downwards and upwards.

Each returns a ``result.LogPartition``. ``estimate.estimate`` chooses one of them, and
``far_field.checked`` and ``from_above.confirmed`` look for mass that its estimate misses.
"""
