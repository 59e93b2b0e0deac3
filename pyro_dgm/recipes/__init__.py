"""Published methods by name: each a composition of program, objective and optimiser, with its reference."""

from pyro_dgm.recipes.autoregressive_flows import iaf_density, maf, naf, tarflow
from pyro_dgm.recipes.base import RECIPES, Citation, Composition, Entry, Recipe, get, load, recipe
from pyro_dgm.recipes.base import names as list
from pyro_dgm.recipes.coupling_flows import nice, nsf, real_nvp
from pyro_dgm.recipes.residual_flows import ffjord, planar, radial, residual, sylvester

__all__ = [
    "RECIPES",
    "Citation",
    "Composition",
    "Entry",
    "Recipe",
    "ffjord",
    "get",
    "iaf_density",
    "list",
    "load",
    "maf",
    "naf",
    "nice",
    "nsf",
    "planar",
    "radial",
    "real_nvp",
    "recipe",
    "residual",
    "sylvester",
    "tarflow",
]
