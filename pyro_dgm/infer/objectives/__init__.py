"""Objectives: each a :class:`pyro.infer.ELBO` that is swapped for another by one argument."""

from pyro_dgm.infer.objectives.adapter import as_objective
from pyro_dgm.infer.objectives.adversarial.adversarial import AdversarialELBO
from pyro_dgm.infer.objectives.adversarial.factor import FactorVAE
from pyro_dgm.infer.objectives.aggregate.betatc import BetaTC
from pyro_dgm.infer.objectives.aggregate.dip import DIP
from pyro_dgm.infer.objectives.aggregate.mmd import MMDELBO
from pyro_dgm.infer.objectives.aggregate.sliced import SlicedWasserstein
from pyro_dgm.infer.objectives.base import Evaluation, Objective, ObjectiveModule
from pyro_dgm.infer.objectives.bounds.ciwae import CIWAE
from pyro_dgm.infer.objectives.bounds.cubo import CUBO
from pyro_dgm.infer.objectives.bounds.dreg import DReG
from pyro_dgm.infer.objectives.bounds.elbo import ELBO
from pyro_dgm.infer.objectives.bounds.iwae import IWAE
from pyro_dgm.infer.objectives.bounds.miwae import MIWAE
from pyro_dgm.infer.objectives.bounds.piwae import PIWAE
from pyro_dgm.infer.objectives.bounds.renyi import RenyiELBO
from pyro_dgm.infer.objectives.bounds.rws import ReweightedWakeSleep
from pyro_dgm.infer.objectives.bounds.stl import STL
from pyro_dgm.infer.objectives.bounds.traceenum import TraceEnumELBO
from pyro_dgm.infer.objectives.bounds.tracegraph import TraceGraphELBO
from pyro_dgm.infer.objectives.bounds.tvo import TVO
from pyro_dgm.infer.objectives.bounds.wake_sleep import WakeSleep
from pyro_dgm.infer.objectives.energies import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    EnergyObjective,
    NoiseContrastive,
    PersistentCD,
    ScoreMatching,
    ShortRunML,
    SlicedScoreMatching,
)
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.infer.objectives.phase import Phase
from pyro_dgm.infer.objectives.phased import Phased
from pyro_dgm.infer.objectives.score_function.nvil import NVIL
from pyro_dgm.infer.objectives.score_function.rebar import REBAR
from pyro_dgm.infer.objectives.score_function.relax import RELAX
from pyro_dgm.infer.objectives.score_function.score_function import ScoreFunction
from pyro_dgm.infer.objectives.score_function.vargrad import VarGrad
from pyro_dgm.infer.objectives.score_function.vimco import VIMCO

#: every objective for programs with latents by name, for the contract tests, the command line and the checkpoints
OBJECTIVES: dict[str, type[ParticleObjective]] = {
    cls.__name__: cls
    for cls in (
        ELBO,
        STL,
        IWAE,
        DReG,
        MIWAE,
        PIWAE,
        CIWAE,
        RenyiELBO,
        CUBO,
        TVO,
        TraceGraphELBO,
        TraceEnumELBO,
        ScoreFunction,
        VIMCO,
        NVIL,
        VarGrad,
        RELAX,
        REBAR,
        WakeSleep,
        ReweightedWakeSleep,
        MMDELBO,
        SlicedWasserstein,
        BetaTC,
        DIP,
        FactorVAE,
        AdversarialELBO,
    )
}

#: every objective for energies by name
ENERGY_OBJECTIVES: dict[str, type[EnergyObjective]] = {
    cls.__name__: cls
    for cls in (
        ContrastiveDivergence,
        PersistentCD,
        ScoreMatching,
        SlicedScoreMatching,
        DenoisingScoreMatching,
        NoiseContrastive,
        ShortRunML,
    )
}

__all__ = [
    "CIWAE",
    "CUBO",
    "DIP",
    "ELBO",
    "ENERGY_OBJECTIVES",
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
    "ContrastiveDivergence",
    "DReG",
    "DenoisingScoreMatching",
    "EnergyObjective",
    "Evaluation",
    "FactorVAE",
    "NoiseContrastive",
    "Objective",
    "ObjectiveModule",
    "ParticleObjective",
    "PersistentCD",
    "Phase",
    "Phased",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "ScoreFunction",
    "ScoreMatching",
    "ShortRunML",
    "SlicedScoreMatching",
    "SlicedWasserstein",
    "TraceEnumELBO",
    "TraceGraphELBO",
    "VarGrad",
    "WakeSleep",
    "as_objective",
]
