"""Normalisers by chains that walk from a known density to an unknown one: annealing, and resampled particles."""

from pyro_dgm.infer.smc.ais import AIS
from pyro_dgm.infer.smc.bdmc import Bracket, bdmc
from pyro_dgm.infer.smc.sampler import SMCResult, SMCSampler

__all__ = ["AIS", "Bracket", "SMCResult", "SMCSampler", "bdmc"]
