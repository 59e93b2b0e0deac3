"""Likelihoods: from a decoder's output to the distribution that stands at the observed site.

A likelihood says how many numbers a decoder must give for one event (:attr:`Likelihood.param_shape`) and turns them
into a distribution.  Any callable ``params -> Distribution`` serves as one too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_dgm.distributions.shared_scale import SharedScaleNormal
from pyro_dgm.ops.arguments import check_floating, check_number

__all__ = ["LIKELIHOODS", "BernoulliLikelihood", "CallableLikelihood", "GaussianLikelihood", "Likelihood", "likelihood"]


class Likelihood(nn.Module):
    """The contract: ``param_shape``, ``forward(params) -> Distribution`` and ``mean(params)``.

    :param event_shape: shape of one datum.
    """

    #: whether the event is discrete, so that data must be checked against the support before training
    discrete = False

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)

    @property
    def param_shape(self) -> torch.Size:
        """Event shape of the decoder's output."""
        return self.event_shape

    def mean(self, params: Tensor) -> Tensor:
        """Mean of one datum, ``batch + event_shape``."""
        return self(params).mean

    def check(self, x: Tensor, argument: str = "x") -> None:
        """Raise ``ValueError`` if ``x`` is outside the support, with what to do about it."""
        check_floating(argument, x)

    def config(self) -> dict[str, Any]:
        """What :func:`likelihood` rebuilds it from, for JSON: its name there (or that of its class) and options."""
        names = {made: name for name, made in LIKELIHOODS.items()}
        return {"name": names.get(type(self), type(self).__name__)}

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


class BernoulliLikelihood(Likelihood):
    """Independent Bernoulli pixels from logits: :math:`\\log p(x|z) = \\sum_i x_i l_i - \\log(1 + e^{l_i})`.

    For data in {0, 1} only: grey-scale pixels are no Bernoulli draws, and the "density" one would report of them is
    no likelihood (binarise first, :func:`pyro_dgm.datasets.dynamic_binarization`).

    :param event_shape: shape of one datum; the decoder gives one logit an element.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import BernoulliLikelihood
        >>> BernoulliLikelihood((8, 8))(torch.zeros(3, 8, 8)).log_prob(torch.ones(3, 8, 8)).shape
        torch.Size([3])
    """

    discrete = True

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=params, validate_args=False).to_event(len(self.event_shape))

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def check(self, x: Tensor, argument: str = "x") -> None:
        super().check(x, argument)
        if bool(((x != 0) & (x != 1)).any()):
            raise ValueError(
                f"{argument} holds values outside {{0, 1}} (from {x.min():.4g} to {x.max():.4g}) but the likelihood is "
                "Bernoulli. Binarise it (pyro_dgm.datasets.dynamic_binarization) or choose likelihood='gaussian'."
            )


class GaussianLikelihood(Likelihood):
    """Independent Gaussian elements: :math:`x_i \\sim N(\\mu_i(z), \\sigma_i^2)`.

    :param event_shape: shape of one datum.
    :param scale: a positive number (a fixed standard deviation, in the units of ``x``); ``"learned"``, one
        standard deviation shared by all elements; ``"per_element"``, one learned for each element; or ``"network"``,
        a second decoder output for each element.
    :param init_scale: where a learned standard deviation starts.
    :param min_scale: smallest standard deviation that ``"network"`` can give; without a floor the density is unbounded.
    :raises ValueError: for a scale that is neither positive nor one of the words.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import GaussianLikelihood
        >>> lik = GaussianLikelihood((4,), scale="network")
        >>> lik.param_shape, lik(torch.zeros(3, 2, 4)).event_shape
        (torch.Size([2, 4]), torch.Size([4]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        scale: float | str = "learned",
        init_scale: float = 1.0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(event_shape)
        words = ("learned", "per_element", "network")
        if isinstance(scale, str):
            if scale not in words:
                raise ValueError(f"scale must be a positive number or one of {words}, got {scale!r}")
            self.kind = scale
        else:
            check_number("scale", scale)
            if not scale > 0:
                raise ValueError(f"scale must be positive, got {scale}")
            self.kind, init_scale = "fixed", float(scale)
        check_number("init_scale", init_scale)
        check_number("min_scale", min_scale)
        if not init_scale > 0 or not min_scale > 0:
            raise ValueError(f"init_scale and min_scale must be positive, got {init_scale} and {min_scale}")
        self.min_scale = float(min_scale)
        log_scale = torch.tensor(float(init_scale)).log()
        if self.kind == "fixed":
            self.register_buffer("log_scale", log_scale)
        elif self.kind == "learned":
            self.log_scale = nn.Parameter(log_scale)
        elif self.kind == "per_element":
            self.log_scale = nn.Parameter(log_scale.expand(self.event_shape).clone())

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size((2,)) + self.event_shape if self.kind == "network" else self.event_shape

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        if self.kind == "network":
            loc, raw = params.unbind(-1 - len(self.event_shape))
            scale = softplus(raw) + self.min_scale
        else:
            loc, scale = params, self.log_scale.exp()
        return SharedScaleNormal(loc, scale, validate_args=False).to_event(len(self.event_shape))

    def mean(self, params: Tensor) -> Tensor:
        return params.select(-1 - len(self.event_shape), 0) if self.kind == "network" else params

    def config(self) -> dict[str, Any]:
        scale = float(self.log_scale.exp()) if self.kind == "fixed" else self.kind
        return {**super().config(), "scale": scale, "min_scale": self.min_scale}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.kind!r}"


class CallableLikelihood(Likelihood):
    """A user's ``params -> Distribution``; the decoder gives ``param_shape``, by default the event shape."""

    def __init__(
        self,
        event_shape: Sequence[int],
        fn: Callable[[Tensor], dist.TorchDistribution],
        param_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(event_shape)
        self.fn = fn
        self._param_shape = torch.Size(event_shape if param_shape is None else param_shape)

    @property
    def param_shape(self) -> torch.Size:
        return self._param_shape

    def check(self, x: Tensor, argument: str = "x") -> None:
        """Accept any numbers: only the user's distribution can say what it takes."""

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        d = self.fn(params)
        missing = len(self.event_shape) - len(d.event_shape)
        return d.to_event(missing) if missing > 0 else d


#: what a family takes as a likelihood
Specification = str | Mapping[str, Any] | Likelihood | Callable[[Tensor], dist.TorchDistribution]

#: the library's likelihoods by the name that families take
LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": BernoulliLikelihood, "gaussian": GaussianLikelihood}


def likelihood(spec: Specification, event_shape: Sequence[int], param_shape: Sequence[int] | None = None) -> Likelihood:
    """A likelihood by name (``"bernoulli"``, ``"gaussian"``), as given, or from any callable giving a distribution.

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
