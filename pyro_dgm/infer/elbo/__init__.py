"""Variational objectives: each a :class:`pyro.infer.ELBO` that is swapped for another by one argument."""

from pyro_dgm.infer.elbo.base import Objective, ObjectiveModule
from pyro_dgm.infer.elbo.betatc import BetaTC
from pyro_dgm.infer.elbo.dip import DIP
from pyro_dgm.infer.elbo.dreg import DReG
from pyro_dgm.infer.elbo.elbo import ELBO
from pyro_dgm.infer.elbo.iwae import IWAE
from pyro_dgm.infer.elbo.mmd import MMDELBO
from pyro_dgm.infer.elbo.nvil import NVIL
from pyro_dgm.infer.elbo.rebar import REBAR
from pyro_dgm.infer.elbo.relax import RELAX
from pyro_dgm.infer.elbo.renyi import RenyiELBO
from pyro_dgm.infer.elbo.rws import ReweightedWakeSleep
from pyro_dgm.infer.elbo.score_function import ScoreFunction
from pyro_dgm.infer.elbo.sliced import SlicedWasserstein
from pyro_dgm.infer.elbo.stl import STL
from pyro_dgm.infer.elbo.traceenum import TraceEnumELBO
from pyro_dgm.infer.elbo.tracegraph import TraceGraphELBO
from pyro_dgm.infer.elbo.vargrad import VarGrad
from pyro_dgm.infer.elbo.vimco import VIMCO
from pyro_dgm.infer.elbo.wake_sleep import WakeSleep

#: every objective by name, for the contract tests, the command line and the checkpoints
OBJECTIVES: dict[str, type[Objective]] = {
    "ELBO": ELBO,
    "STL": STL,
    "IWAE": IWAE,
    "DReG": DReG,
    "RenyiELBO": RenyiELBO,
    "TraceGraphELBO": TraceGraphELBO,
    "TraceEnumELBO": TraceEnumELBO,
    "ScoreFunction": ScoreFunction,
    "VIMCO": VIMCO,
    "NVIL": NVIL,
    "VarGrad": VarGrad,
    "RELAX": RELAX,
    "REBAR": REBAR,
    "WakeSleep": WakeSleep,
    "ReweightedWakeSleep": ReweightedWakeSleep,
    "MMDELBO": MMDELBO,
    "SlicedWasserstein": SlicedWasserstein,
    "BetaTC": BetaTC,
    "DIP": DIP,
}

__all__ = [
    "DIP",
    "ELBO",
    "IWAE",
    "MMDELBO",
    "NVIL",
    "OBJECTIVES",
    "REBAR",
    "RELAX",
    "STL",
    "VIMCO",
    "BetaTC",
    "DReG",
    "Objective",
    "ObjectiveModule",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "ScoreFunction",
    "SlicedWasserstein",
    "TraceEnumELBO",
    "TraceGraphELBO",
    "VarGrad",
    "WakeSleep",
]
