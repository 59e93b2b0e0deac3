"""Objectives for energy-based programs, whose density is known up to a constant."""

from pyro_dgm.infer.energy.base import EnergyObjective, EnergySite
from pyro_dgm.infer.energy.contrastive import ContrastiveDivergence, PersistentCD
from pyro_dgm.infer.energy.denoising import DenoisingScoreMatching
from pyro_dgm.infer.energy.latent import ShortRunML
from pyro_dgm.infer.energy.noise_contrastive import NoiseContrastive
from pyro_dgm.infer.energy.score import ScoreObjective
from pyro_dgm.infer.energy.score_matching import ScoreMatching
from pyro_dgm.infer.energy.sliced import SlicedScoreMatching

__all__ = [
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "EnergyObjective",
    "EnergySite",
    "NoiseContrastive",
    "PersistentCD",
    "ScoreMatching",
    "ScoreObjective",
    "ShortRunML",
    "SlicedScoreMatching",
]
