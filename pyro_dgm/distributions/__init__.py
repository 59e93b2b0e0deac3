"""What can stand at a ``pyro.sample`` site: priors, likelihoods, and trained models as distributions."""

from pyro_dgm.distributions.likelihoods import (
    BernoulliLikelihood,
    CallableLikelihood,
    GaussianLikelihood,
    Likelihood,
    likelihood,
)

__all__ = ["BernoulliLikelihood", "CallableLikelihood", "GaussianLikelihood", "Likelihood", "likelihood"]
