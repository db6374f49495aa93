"""log Z, the constant that makes e^s a density, with its error.

All methods take any log-density s(x, sigma) that is known up to a constant at each sigma, of data
x ~ p blurred by N(0, sigma**2 I):

- ``ladder.ladder``: bridge sampling between neighbouring noise levels, up to one where the blurred
  data are nearly Gaussian, and from there to a Gaussian whose log Z is known.
- ``importance.importance``: importance sampling from one Gaussian, as in the paper.
- ``annealed.annealed``: annealed importance sampling, upwards and downwards.

``estimate.estimate`` chooses one of them; each returns a ``result.LogPartition``.
"""
