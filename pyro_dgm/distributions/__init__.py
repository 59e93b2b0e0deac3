"""What can stand at a ``pyro.sample`` site: priors, likelihoods, and trained models as distributions."""

from pyro_dgm.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_dgm.distributions.dbm import DBMDistribution
from pyro_dgm.distributions.energy import EnergyDistribution
from pyro_dgm.distributions.flow import FlowDistribution
from pyro_dgm.distributions.flow_reparam import FlowReparam
from pyro_dgm.distributions.fully_visible import FullyVisibleDistribution
from pyro_dgm.distributions.levels import CategoricalLevels, DiscretizedLogistic
from pyro_dgm.distributions.likelihoods import (
    BernoulliLikelihood,
    CallableLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    Likelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    StudentTLikelihood,
    likelihood,
)
from pyro_dgm.distributions.priors import FlowPrior, MixturePrior, NormalPrior, Prior, SpherePrior, VampPrior
from pyro_dgm.distributions.rbm import RBMDistribution
from pyro_dgm.distributions.replay_buffer import ReplayBuffer
from pyro_dgm.distributions.unnormalized import UnnormalizedDistribution
from pyro_dgm.distributions.visible_units import BernoulliUnits, CategoricalUnits, GaussianUnits, VisibleUnits
from pyro_dgm.distributions.von_mises_fisher import UniformSphere, VonMisesFisher

__all__ = [
    "BernoulliLikelihood",
    "BernoulliUnits",
    "CallableLikelihood",
    "CategoricalLevels",
    "CategoricalLikelihood",
    "CategoricalUnits",
    "ContinuousBernoulli",
    "ContinuousBernoulliLikelihood",
    "DBMDistribution",
    "DiscretizedLogistic",
    "DiscretizedLogisticLikelihood",
    "EnergyDistribution",
    "FlowDistribution",
    "FlowPrior",
    "FlowReparam",
    "FullyVisibleDistribution",
    "GaussianLikelihood",
    "GaussianUnits",
    "Likelihood",
    "MixturePrior",
    "MultinomialLikelihood",
    "NegativeBinomialLikelihood",
    "NormalPrior",
    "Prior",
    "RBMDistribution",
    "ReplayBuffer",
    "SpherePrior",
    "StudentTLikelihood",
    "UniformSphere",
    "UnnormalizedDistribution",
    "VampPrior",
    "VisibleUnits",
    "VonMisesFisher",
    "likelihood",
]
