"""Published methods by name: each a composition of program, objective and optimiser, with its reference."""

from pyro_dgm.recipes.aggregate_vaes import avb, info_vae, swae, wae_mmd
from pyro_dgm.recipes.autoregressive_flows import iaf_density, maf, naf, tarflow
from pyro_dgm.recipes.base import RECIPES, Citation, Composition, Entry, Recipe, get, load, recipe
from pyro_dgm.recipes.base import names as list
from pyro_dgm.recipes.coupling_flows import nice, nsf, real_nvp
from pyro_dgm.recipes.disentangling import beta_tc_vae, dip_vae_i, dip_vae_ii, factor_vae
from pyro_dgm.recipes.flow_vaes import vae_iaf, vae_planar, vae_spline, vae_sylvester
from pyro_dgm.recipes.image_flows import glow
from pyro_dgm.recipes.importance_weighted import ciwae, dreg_iwae, iwae, miwae, piwae
from pyro_dgm.recipes.residual_flows import ffjord, planar, radial, residual, sylvester
from pyro_dgm.recipes.vaes import beta_vae, capacity_beta_vae, vae

__all__ = [
    "RECIPES",
    "Citation",
    "Composition",
    "Entry",
    "Recipe",
    "avb",
    "beta_tc_vae",
    "beta_vae",
    "capacity_beta_vae",
    "ciwae",
    "dip_vae_i",
    "dip_vae_ii",
    "dreg_iwae",
    "factor_vae",
    "ffjord",
    "get",
    "glow",
    "iaf_density",
    "info_vae",
    "iwae",
    "list",
    "load",
    "maf",
    "miwae",
    "naf",
    "nice",
    "nsf",
    "piwae",
    "planar",
    "radial",
    "real_nvp",
    "recipe",
    "residual",
    "swae",
    "sylvester",
    "tarflow",
    "vae",
    "vae_iaf",
    "vae_planar",
    "vae_spline",
    "vae_sylvester",
    "wae_mmd",
]
