"""Generative programs, one family a file: each a PyroModule with ``.model`` and ``.guide`` over the same batch."""

from pyro_dgm.models.base import Family, program_method
from pyro_dgm.models.boltzmann import BoltzmannFamily
from pyro_dgm.models.boltzmann_machine import BoltzmannMachine
from pyro_dgm.models.dbm import DBM, DBMStage
from pyro_dgm.models.energy import EBM
from pyro_dgm.models.energy_family import EnergyFamily
from pyro_dgm.models.flow import FlowModel
from pyro_dgm.models.latent_ebm import LatentEBM
from pyro_dgm.models.linear_gaussian import LinearGaussian
from pyro_dgm.models.rbm import RBM
from pyro_dgm.models.vae import VAE

#: every built-in family by name
FAMILIES: dict[str, type[Family]] = {
    family.__name__: family for family in (VAE, LinearGaussian, FlowModel, LatentEBM, RBM, DBM, BoltzmannMachine, EBM)
}

#: those of them whose density is known up to a constant: trained by :mod:`pyro_dgm.infer.objectives.energies`
ENERGY_FAMILIES: dict[str, type[EnergyFamily]] = {
    name: family for name, family in FAMILIES.items() if issubclass(family, EnergyFamily)
}

__all__ = [
    "DBM",
    "EBM",
    "ENERGY_FAMILIES",
    "FAMILIES",
    "RBM",
    "VAE",
    "BoltzmannFamily",
    "BoltzmannMachine",
    "DBMStage",
    "EnergyFamily",
    "Family",
    "FlowModel",
    "LatentEBM",
    "LinearGaussian",
    "program_method",
]
