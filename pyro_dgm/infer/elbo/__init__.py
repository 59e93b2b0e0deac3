"""Variational objectives: each a :class:`pyro.infer.ELBO` that is swapped for another by one argument."""

from pyro_dgm.infer.elbo.adversarial import AdversarialELBO
from pyro_dgm.infer.elbo.base import Objective, ObjectiveModule
from pyro_dgm.infer.elbo.betatc import BetaTC
from pyro_dgm.infer.elbo.ciwae import CIWAE
from pyro_dgm.infer.elbo.cubo import CUBO
from pyro_dgm.infer.elbo.dip import DIP
from pyro_dgm.infer.elbo.dreg import DReG
from pyro_dgm.infer.elbo.elbo import ELBO
from pyro_dgm.infer.elbo.factor import FactorVAE
from pyro_dgm.infer.elbo.iwae import IWAE
from pyro_dgm.infer.elbo.miwae import MIWAE
from pyro_dgm.infer.elbo.mmd import MMDELBO
from pyro_dgm.infer.elbo.nvil import NVIL
from pyro_dgm.infer.elbo.piwae import PIWAE
from pyro_dgm.infer.elbo.rebar import REBAR
from pyro_dgm.infer.elbo.relax import RELAX
from pyro_dgm.infer.elbo.renyi import RenyiELBO
from pyro_dgm.infer.elbo.rws import ReweightedWakeSleep
from pyro_dgm.infer.elbo.score_function import ScoreFunction
from pyro_dgm.infer.elbo.sliced import SlicedWasserstein
from pyro_dgm.infer.elbo.stl import STL
from pyro_dgm.infer.elbo.traceenum import TraceEnumELBO
from pyro_dgm.infer.elbo.tracegraph import TraceGraphELBO
from pyro_dgm.infer.elbo.tvo import TVO
from pyro_dgm.infer.elbo.vargrad import VarGrad
from pyro_dgm.infer.elbo.vimco import VIMCO
from pyro_dgm.infer.elbo.wake_sleep import WakeSleep

#: every objective by name, for the contract tests, the command line and the checkpoints
OBJECTIVES: dict[str, type[Objective]] = {
    "ELBO": ELBO,
    "STL": STL,
    "IWAE": IWAE,
    "DReG": DReG,
    "MIWAE": MIWAE,
    "PIWAE": PIWAE,
    "CIWAE": CIWAE,
    "RenyiELBO": RenyiELBO,
    "CUBO": CUBO,
    "TVO": TVO,
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
    "FactorVAE": FactorVAE,
    "AdversarialELBO": AdversarialELBO,
}

__all__ = [
    "CIWAE",
    "CUBO",
    "DIP",
    "ELBO",
    "IWAE",
    "MIWAE",
    "MMDELBO",
    "NVIL",
    "OBJECTIVES",
    "PIWAE",
    "REBAR",
    "RELAX",
    "STL",
    "TVO",
    "VIMCO",
    "AdversarialELBO",
    "BetaTC",
    "DReG",
    "FactorVAE",
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
