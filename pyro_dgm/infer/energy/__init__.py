"""Objectives for energy-based programs, whose density is known up to a constant."""

from pyro_dgm.infer.energy.base import EnergyObjective, EnergySite
from pyro_dgm.infer.energy.contrastive import ContrastiveDivergence, PersistentCD

__all__ = ["ContrastiveDivergence", "EnergyObjective", "EnergySite", "PersistentCD"]
