"""Inference for any program: objectives, samplers, and the training loop.  Knows programs, never families."""

from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer import mcmc, smc
from pyro_dgm.infer.mcmc.potentials.captured import capture_potential
from pyro_dgm.infer.moved import install
from pyro_dgm.infer.objectives import (
    CIWAE,
    CUBO,
    DIP,
    ELBO,
    ENERGY_OBJECTIVES,
    IWAE,
    MIWAE,
    MMDELBO,
    NVIL,
    OBJECTIVES,
    PIWAE,
    REBAR,
    RELAX,
    STL,
    TVO,
    VIMCO,
    AdversarialELBO,
    BetaTC,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    DReG,
    EnergyObjective,
    Evaluation,
    FactorVAE,
    NoiseContrastive,
    Objective,
    ObjectiveModule,
    ParticleObjective,
    PersistentCD,
    Phase,
    Phased,
    RenyiELBO,
    ReweightedWakeSleep,
    ScoreFunction,
    ScoreMatching,
    ShortRunML,
    SlicedScoreMatching,
    SlicedWasserstein,
    TraceEnumELBO,
    TraceGraphELBO,
    VarGrad,
    WakeSleep,
    as_objective,
)
from pyro_dgm.infer.objectives.captured import CapturedELBO
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.infer.sample import sample_posterior
from pyro_dgm.infer.train.averaging import EMA, SWA
from pyro_dgm.infer.train.callbacks import Callback, EarlyStopping
from pyro_dgm.infer.train.checkpoints.checkpoint import load_weights
from pyro_dgm.infer.train.fit import fit
from pyro_dgm.infer.train.nonfinite import NonFiniteLossError
from pyro_dgm.infer.train.paired import Paired
from pyro_dgm.infer.train.precision import mixed_precision
from pyro_dgm.infer.train.run import Run
from pyro_dgm.programs.relaxation import continuous_relaxation

install()

__all__ = [
    "CIWAE",
    "CUBO",
    "DIP",
    "ELBO",
    "EMA",
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
    "SWA",
    "TVO",
    "VIMCO",
    "AdversarialELBO",
    "BetaTC",
    "Callback",
    "CannotCapture",
    "CapturedELBO",
    "ContrastiveDivergence",
    "DReG",
    "DenoisingScoreMatching",
    "EarlyStopping",
    "EnergyObjective",
    "Evaluation",
    "FactorVAE",
    "NoiseContrastive",
    "NonFiniteLossError",
    "Objective",
    "ObjectiveModule",
    "Paired",
    "ParticleObjective",
    "PersistentCD",
    "Phase",
    "Phased",
    "Posterior",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "Run",
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
    "capture_potential",
    "continuous_relaxation",
    "fit",
    "load_weights",
    "mcmc",
    "mixed_precision",
    "sample_posterior",
    "smc",
]
