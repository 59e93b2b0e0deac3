"""What can stand at a ``pyro.sample`` site: priors, likelihoods, and trained models as distributions."""

from pyro_dgm.distributions.dbm import DBMDistribution
from pyro_dgm.distributions.energy import EnergyDistribution
from pyro_dgm.distributions.flow import FlowDistribution
from pyro_dgm.distributions.flow_reparam import FlowReparam
from pyro_dgm.distributions.fully_visible import FullyVisibleDistribution
from pyro_dgm.distributions.likelihoods import (
    BernoulliLikelihood,
    CallableLikelihood,
    GaussianLikelihood,
    Likelihood,
    likelihood,
)
from pyro_dgm.distributions.rbm import RBMDistribution
from pyro_dgm.distributions.replay_buffer import ReplayBuffer
from pyro_dgm.distributions.unnormalized import UnnormalizedDistribution
from pyro_dgm.distributions.visible_units import BernoulliUnits, CategoricalUnits, GaussianUnits, VisibleUnits

__all__ = [
    "BernoulliLikelihood",
    "BernoulliUnits",
    "CallableLikelihood",
    "CategoricalUnits",
    "DBMDistribution",
    "EnergyDistribution",
    "FlowDistribution",
    "FlowReparam",
    "FullyVisibleDistribution",
    "GaussianLikelihood",
    "GaussianUnits",
    "Likelihood",
    "RBMDistribution",
    "ReplayBuffer",
    "UnnormalizedDistribution",
    "VisibleUnits",
    "likelihood",
]
