"""Likelihoods: from a decoder's output to the distribution of a datum, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_dgm.distributions.likelihoods.base import LIKELIHOODS, Likelihood
from pyro_dgm.distributions.likelihoods.bernoulli import BernoulliLikelihood
from pyro_dgm.distributions.likelihoods.categorical import CategoricalLikelihood
from pyro_dgm.distributions.likelihoods.continuous_bernoulli import ContinuousBernoulliLikelihood
from pyro_dgm.distributions.likelihoods.custom import CallableLikelihood
from pyro_dgm.distributions.likelihoods.discretized_logistic import DiscretizedLogisticLikelihood
from pyro_dgm.distributions.likelihoods.gaussian import GaussianLikelihood
from pyro_dgm.distributions.likelihoods.multinomial import MultinomialLikelihood
from pyro_dgm.distributions.likelihoods.negative_binomial import NegativeBinomialLikelihood
from pyro_dgm.distributions.likelihoods.student_t import StudentTLikelihood

__all__ = [
    "LIKELIHOODS",
    "BernoulliLikelihood",
    "CallableLikelihood",
    "CategoricalLikelihood",
    "ContinuousBernoulliLikelihood",
    "DiscretizedLogisticLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "MultinomialLikelihood",
    "NegativeBinomialLikelihood",
    "Specification",
    "StudentTLikelihood",
    "likelihood",
]

#: what a family takes as a likelihood
Specification = str | Mapping[str, Any] | Likelihood | Callable[[Tensor], dist.TorchDistribution]


def likelihood(spec: Specification, event_shape: Sequence[int], param_shape: Sequence[int] | None = None) -> Likelihood:
    """A likelihood by its name in :data:`LIKELIHOODS`, as given, or from any callable giving a distribution.

    :param spec: a name in :data:`LIKELIHOODS`; a mapping with ``"name"`` and options, as ``config()`` gives it; a
        likelihood; or a callable from the decoder's output to a distribution.
    :param event_shape: shape of one datum.
    :param param_shape: event shape of the decoder's output, for a callable.
    :raises ValueError: for an unknown name, or a likelihood of another event shape.
    :raises TypeError: for anything that is neither.

    Example::

        >>> from pyro_dgm.distributions import likelihood
        >>> likelihood("bernoulli", (8, 8))
        BernoulliLikelihood(event_shape=(8, 8))
    """
    if isinstance(spec, Likelihood):
        if spec.event_shape != torch.Size(event_shape) and not isinstance(spec, CallableLikelihood):
            raise ValueError(f"likelihood has event shape {tuple(spec.event_shape)}, the data {tuple(event_shape)}")
        return spec
    if isinstance(spec, str):
        if spec not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {sorted(LIKELIHOODS)} or a callable, got {spec!r}")
        return LIKELIHOODS[spec](event_shape)
    if isinstance(spec, Mapping):
        options = dict(spec)
        name = options.pop("name", None)
        if name not in LIKELIHOODS:
            raise ValueError(f"likelihood {name!r} was given as an object, which a configuration cannot rebuild")
        return LIKELIHOODS[name](event_shape, **options)
    if callable(spec):
        return CallableLikelihood(event_shape, spec, param_shape)
    raise TypeError(f"likelihood must be a name or a callable giving a distribution, got {type(spec).__name__}")
