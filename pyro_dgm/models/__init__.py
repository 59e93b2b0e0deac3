"""Generative programs, one family a file: each a PyroModule with ``.model`` and ``.guide`` over the same batch."""

from pyro_dgm.models.base import Family, program_method
from pyro_dgm.models.boltzmann import BoltzmannFamily
from pyro_dgm.models.boltzmann_machine import BoltzmannMachine
from pyro_dgm.models.dbm import DBM, DBMStage
from pyro_dgm.models.linear_gaussian import LinearGaussian
from pyro_dgm.models.rbm import RBM
from pyro_dgm.models.vae import VAE

#: every built-in family by name, for the contract tests, the command line and the checkpoints
FAMILIES: dict[str, type[Family]] = {"VAE": VAE, "LinearGaussian": LinearGaussian}

#: families whose density is known up to a constant: they are trained by the objectives of :mod:`pyro_dgm.infer.energy`
ENERGY_FAMILIES: dict[str, type[BoltzmannFamily]] = {
    "RBM": RBM,
    "DBM": DBM,
    "BoltzmannMachine": BoltzmannMachine,
}

__all__ = [
    "DBM",
    "ENERGY_FAMILIES",
    "FAMILIES",
    "RBM",
    "VAE",
    "BoltzmannFamily",
    "BoltzmannMachine",
    "DBMStage",
    "Family",
    "LinearGaussian",
    "program_method",
]
