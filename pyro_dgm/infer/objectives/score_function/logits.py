"""Continuous variables behind Bernoulli and categorical sites: draws given the discrete value, and densities."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot, softplus

from pyro_dgm.programs.base_of import base_of

__all__ = ["Hidden", "relaxed_log_prob"]


class Hidden:
    """A discrete guide site as a function of a continuous variable: logistic for Bernoulli, Gumbel for categorical.

    :ivar kind: ``"bernoulli"``, ``"onehot"`` or ``"categorical"``.
    :ivar event_dim: of ``logits`` and of the hidden variable.
    """

    def __init__(self, objective: Any, site: Any, logits: Tensor | None = None) -> None:
        base, self.name, self.fn = base_of(site["fn"]), site["name"], site["fn"]
        kinds = ((dist.Bernoulli, "bernoulli"), (dist.OneHotCategorical, "onehot"), (dist.Categorical, "categorical"))
        found = [kind for cls, kind in kinds if isinstance(base, cls)]
        if not found:
            raise ValueError(
                f"{type(objective).__name__} handles Bernoulli, Categorical and OneHotCategorical guide sites, but "
                f"{self.name!r} is {type(base).__name__}: use VIMCO or ScoreFunction"
            )
        self.kind = found[0]
        self.event_dim = site["fn"].event_dim + (self.kind == "categorical")
        self.logits = base.logits if logits is None else logits
        value = site["value"].detach()
        if self.kind == "categorical":
            value = one_hot(value.long(), self.logits.shape[-1])
        self.value = value.to(self.logits.dtype)

    def at(self, logits: Tensor) -> Hidden:
        """The same draw as a function of other logits."""
        other = object.__new__(Hidden)
        other.__dict__.update(self.__dict__, logits=logits)
        return other

    def score(self) -> Tensor:
        """Gradient of the value's log-probability by the logits."""
        return self.value - (self.logits.sigmoid() if self.kind == "bernoulli" else self.logits.softmax(-1))

    def noise(self) -> Tensor:
        """Uniform numbers for :meth:`given_value`, away from 0 and 1."""
        tiny = torch.finfo(self.logits.dtype).tiny
        eps = torch.finfo(self.logits.dtype).eps
        return torch.rand_like(self.logits).clamp(tiny, 1 - eps / 2)

    def given_value(self, uniform: Tensor) -> Tensor:
        """Draw the hidden variable given the discrete value, differentiably by the logits."""
        if self.kind == "bernoulli":
            # logit of a uniform number restricted to the side that gives the value, in a form that cannot overflow
            v = uniform.log() - (-uniform).log1p()
            return torch.where(
                self.value > 0.5, softplus(v + softplus(self.logits)), -softplus(v + softplus(-self.logits))
            )
        # The largest of Gumbel variables is a Gumbel variable; the others are Gumbel, cut off at it.
        log_p, exponential = self.logits.log_softmax(-1), -uniform.log()
        top = -(exponential * self.value).sum(-1, keepdim=True).log()
        others = -torch.logaddexp(exponential.log() - log_p, -top)
        return torch.where(self.value > 0.5, top.expand_as(others), others)

    @property
    def location(self) -> Tensor:
        """What the noise is added to."""
        return self.logits if self.kind == "bernoulli" else self.logits.log_softmax(-1)

    def soft(self, hidden: Tensor, temperature: Tensor) -> Tensor:
        """The relaxed value of a hidden variable."""
        scaled = hidden / temperature
        return scaled.sigmoid() if self.kind == "bernoulli" else scaled.softmax(-1)


def relaxed_log_prob(fn: Any, value: Tensor) -> Tensor:
    """A Bernoulli's or one-hot categorical's log-probability, linear in the value, for values between 0 and 1."""
    base = base_of(fn)
    if isinstance(base, dist.Bernoulli):
        terms = value * logsigmoid(base.logits) + (1 - value) * logsigmoid(-base.logits)
    else:
        terms = (value * base.logits.log_softmax(-1)).sum(-1)
    extra = fn.event_dim - base.event_dim
    return terms.sum(tuple(range(-extra, 0))) if extra else terms
