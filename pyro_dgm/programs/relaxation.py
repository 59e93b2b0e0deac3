"""Discrete sites replaced by continuous relaxations: a handler, so that no model has to be changed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dgm.programs.base_of import base_of

__all__ = ["continuous_relaxation"]

METHODS = ("gumbel_softmax", "straight_through")


def continuous_relaxation(
    fn: Callable[..., Any],
    sites: Collection[str] | None = None,
    method: str = "gumbel_softmax",
    temperature: float | Tensor = 0.5,
) -> Callable[..., Any]:
    r"""Replace Bernoulli and categorical latents by relaxed ones, which have pathwise gradients.

    .. math:: b = \sigma\left(\tfrac{t + \mathrm{logit}\, u}{\lambda}\right), \qquad
              y = \mathrm{softmax}\left(\tfrac{t - \log(-\log u)}{\lambda}\right), \qquad u \sim U(0, 1)

    with logits :math:`t` and temperature :math:`\lambda`.  Relax model and guide alike.  What is trained is the relaxed
    program, and its gradients are *biased* for the discrete one: the expected log-likelihood tends to the discrete
    program's as the temperature falls, while the gradient's noise grows; the divergence is that of the relaxed
    densities at any temperature.  Use it with :class:`~pyro_dgm.infer.ELBO`, :class:`~pyro_dgm.infer.STL` or
    :class:`~pyro_dgm.infer.DReG`, and evaluate the discrete program; unbiased are :class:`~pyro_dgm.infer.VIMCO`,
    :class:`~pyro_dgm.infer.RELAX` and :class:`~pyro_dgm.infer.REBAR`.

    The program sees relaxed values between 0 and 1 (``"gumbel_softmax"``), or values rounded to 0 and 1 through which
    gradients pass as if they had not been (``"straight_through"``, another bias).  The densities are those of the
    relaxed values either way, and an integer-valued ``Categorical`` becomes one-hot: the program must take vectors.

    :param fn: model or guide.
    :param sites: names of the latents to relax; all Bernoulli and categorical ones if not given.
    :param method: ``"gumbel_softmax"`` or ``"straight_through"``.
    :param temperature: a positive number, or a tensor that is filled in place from step to step.
    :returns: the relaxed callable.
    :raises ValueError: for an unknown method, or a temperature that is not positive; when run, for a named site of
        another kind.

    Source: E. Jang, S. Gu and B. Poole (2017), arXiv:1611.01144; C. J. Maddison, A. Mnih and Y. W. Teh (2017),
    arXiv:1611.00712; straight-through: Y. Bengio, N. Léonard and A. Courville (2013), arXiv:1308.3432.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_dgm.infer import ELBO, continuous_relaxation
        >>> logit = torch.zeros((), requires_grad=True)
        >>> def model():
        ...     b = pyro.sample("b", dist.Bernoulli(0.5))
        ...     pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(1.0))
        >>> def guide():
        ...     pyro.sample("b", dist.Bernoulli(logits=logit))
        >>> ELBO()(continuous_relaxation(model), continuous_relaxation(guide))().backward()
        >>> bool(logit.grad != 0)
        True
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if not callable(fn):
        raise TypeError(f"fn must be a model or a guide, a callable with Pyro sites, got {type(fn).__name__}")
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    names = None if sites is None else {sites} if isinstance(sites, str) else set(sites)
    return RelaxMessenger(names, method == "straight_through", temperature)(fn)


class RelaxMessenger(Messenger):
    """The handler behind :func:`continuous_relaxation`."""

    def __init__(self, sites: set[str] | None, hard: bool, temperature: float | Tensor) -> None:
        super().__init__()
        self.sites, self.hard, self.temperature = sites, hard, temperature

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or (self.sites is not None and msg["name"] not in self.sites):
            return
        relaxed = _relaxed(msg["fn"], self.temperature)
        if relaxed is not None:
            msg["fn"] = relaxed
            msg["infer"] = {**msg["infer"], "_relaxed": True}
        elif self.sites is not None:
            raise ValueError(
                "continuous_relaxation() handles Bernoulli, Categorical and OneHotCategorical sites, but "
                f"{msg['name']!r} is {type(msg['fn']).__name__}: leave it out of sites"
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        # Handlers further out, a trace among them, have seen the relaxed value already: densities are taken of it.
        # Only the program, inside, gets the rounded one.
        if self.hard and msg["infer"].get("_relaxed"):
            soft = msg["value"]
            if msg["fn"].event_dim and not _is_bernoulli(msg["fn"]):
                top = soft.argmax(-1, keepdim=True)
                rounded = torch.zeros_like(soft).scatter(-1, top, 1.0)
            else:
                rounded = soft.round()
            msg["value"] = rounded.detach() + (soft - soft.detach())


def _is_bernoulli(fn: Any) -> bool:
    return isinstance(base_of(fn, (dist.Independent, dist.MaskedDistribution)), dist.RelaxedBernoulli)


def _relaxed(fn: Any, temperature: float | Tensor) -> Any:
    """The relaxation of a distribution, or ``None`` where it has none."""
    if isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        base = _relaxed(fn.base_dist, temperature)
        if base is None:
            return None
        masked = isinstance(fn, dist.MaskedDistribution)
        return base.mask(fn._mask) if masked else base.to_event(fn.reinterpreted_batch_ndims)
    if not isinstance(fn, (dist.Bernoulli, dist.Categorical, dist.OneHotCategorical)):
        return None
    value = torch.as_tensor(temperature, dtype=fn.logits.dtype, device=fn.logits.device)
    if isinstance(fn, dist.Bernoulli):
        return dist.RelaxedBernoulli(value, logits=fn.logits)
    return dist.RelaxedOneHotCategorical(value, logits=fn.logits)
