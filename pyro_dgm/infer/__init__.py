"""Inference for any program: objectives, samplers, and the training loop.  Knows programs, never families."""

from pyro_dgm.infer import mcmc
from pyro_dgm.infer.callbacks import Callback, EarlyStopping
from pyro_dgm.infer.capture import CapturedELBO
from pyro_dgm.infer.captured_potential import capture_potential
from pyro_dgm.infer.checkpoint import load_weights
from pyro_dgm.infer.elbo import (
    CIWAE,
    CUBO,
    DIP,
    ELBO,
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
    DReG,
    FactorVAE,
    Objective,
    RenyiELBO,
    ReweightedWakeSleep,
    ScoreFunction,
    SlicedWasserstein,
    TraceEnumELBO,
    TraceGraphELBO,
    VarGrad,
    WakeSleep,
)
from pyro_dgm.infer.energy import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    EnergyObjective,
    NoiseContrastive,
    PersistentCD,
    ScoreMatching,
    ShortRunML,
    SlicedScoreMatching,
)
from pyro_dgm.infer.nonfinite import NonFiniteLossError
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.infer.precision import mixed_precision
from pyro_dgm.infer.relaxation import relax
from pyro_dgm.infer.run import Run
from pyro_dgm.infer.sample import sample_posterior
from pyro_dgm.infer.static_graph import CannotCapture

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
    "Callback",
    "CannotCapture",
    "CapturedELBO",
    "ContrastiveDivergence",
    "DReG",
    "DenoisingScoreMatching",
    "EarlyStopping",
    "EnergyObjective",
    "FactorVAE",
    "NoiseContrastive",
    "NonFiniteLossError",
    "Objective",
    "PersistentCD",
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
    "capture_potential",
    "load_weights",
    "mcmc",
    "mixed_precision",
    "relax",
    "sample_posterior",
]
