"""Variational objectives: each a :class:`pyro.infer.ELBO` that is swapped for another by one argument."""

from pyro_dgm.infer.elbo.base import Objective, ObjectiveModule
from pyro_dgm.infer.elbo.dreg import DReG
from pyro_dgm.infer.elbo.elbo import ELBO
from pyro_dgm.infer.elbo.iwae import IWAE
from pyro_dgm.infer.elbo.renyi import RenyiELBO
from pyro_dgm.infer.elbo.stl import STL
from pyro_dgm.infer.elbo.tracegraph import TraceGraphELBO

#: every objective by name, for the contract tests, the command line and the checkpoints
OBJECTIVES: dict[str, type[Objective]] = {
    "ELBO": ELBO,
    "STL": STL,
    "IWAE": IWAE,
    "DReG": DReG,
    "RenyiELBO": RenyiELBO,
    "TraceGraphELBO": TraceGraphELBO,
}

__all__ = ["ELBO", "IWAE", "OBJECTIVES", "STL", "DReG", "Objective", "ObjectiveModule", "RenyiELBO", "TraceGraphELBO"]
