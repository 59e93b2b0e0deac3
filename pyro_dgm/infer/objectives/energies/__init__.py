"""Objectives for energy-based programs, whose density is known up to a constant."""

from pyro_dgm.infer.objectives.energies.base import EnergyObjective, EnergySite
from pyro_dgm.infer.objectives.energies.contrastive import ContrastiveDivergence, PersistentCD
from pyro_dgm.infer.objectives.energies.denoising import DenoisingScoreMatching
from pyro_dgm.infer.objectives.energies.latent import ShortRunML
from pyro_dgm.infer.objectives.energies.noise_contrastive import NoiseContrastive
from pyro_dgm.infer.objectives.energies.score import ScoreObjective
from pyro_dgm.infer.objectives.energies.score_matching import ScoreMatching
from pyro_dgm.infer.objectives.energies.sliced import SlicedScoreMatching

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
