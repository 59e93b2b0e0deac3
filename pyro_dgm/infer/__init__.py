"""Inference for any program: objectives, samplers, and the training loop.  Knows programs, never families."""

from pyro_dgm.infer import mcmc
from pyro_dgm.infer.elbo import (
    ELBO,
    IWAE,
    OBJECTIVES,
    STL,
    DReG,
    Objective,
    RenyiELBO,
    TraceGraphELBO,
)
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.infer.sample import sample_posterior

__all__ = [
    "ELBO",
    "IWAE",
    "OBJECTIVES",
    "STL",
    "DReG",
    "Objective",
    "Posterior",
    "RenyiELBO",
    "TraceGraphELBO",
    "mcmc",
    "sample_posterior",
]
