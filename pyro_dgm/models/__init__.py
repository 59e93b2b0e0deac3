"""Generative programs, one family a file: each a PyroModule with ``.model`` and ``.guide`` over the same batch."""

from pyro_dgm.models.base import Family, program_method
from pyro_dgm.models.linear_gaussian import LinearGaussian
from pyro_dgm.models.vae import VAE

#: every built-in family by name, for the contract tests, the command line and the checkpoints
FAMILIES: dict[str, type[Family]] = {"VAE": VAE, "LinearGaussian": LinearGaussian}

__all__ = ["FAMILIES", "VAE", "Family", "LinearGaussian", "program_method"]
