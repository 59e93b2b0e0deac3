"""Any Pyro model on NumPyro's engine, and as a JAX function for any other.

The model's log-joint density of unconstrained latents is recorded as torch's own operations, made functional, and each
operation is replaced by one of :mod:`jax.numpy` from a table (``jaxlower.lowerings()``).  Nothing of
the model is written twice, and nothing is trusted: value and gradient are held against torch's before the function is
given out.  Needs the extra ``numpyro``.
"""

from __future__ import annotations

from pyro_dgm.interop.backends import BackendComparison, compare_backends
from pyro_dgm.interop.jax_density import JaxDensity, to_jax
from pyro_dgm.interop.jaxlower import CannotConvert
from pyro_dgm.interop.numpyro_nuts import run_nuts

__all__ = ["BackendComparison", "CannotConvert", "JaxDensity", "compare_backends", "run_nuts", "to_jax"]
