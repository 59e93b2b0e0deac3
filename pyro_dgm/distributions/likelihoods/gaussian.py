"""Real data: independent Gaussian elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_dgm.distributions.likelihoods.base import Likelihood, register
from pyro_dgm.distributions.shared_scale import SharedScaleNormal
from pyro_dgm.ops.arguments import check_number

__all__ = ["GaussianLikelihood"]


@register("gaussian")
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
            loc, raw = self.parts(params, 2)
            scale = softplus(raw) + self.min_scale
        else:
            loc, scale = params, self.log_scale.exp()
        return self.independent(SharedScaleNormal(loc, scale, validate_args=False))

    def mean(self, params: Tensor) -> Tensor:
        return params.select(-1 - len(self.event_shape), 0) if self.kind == "network" else params

    def config(self) -> dict[str, Any]:
        scale = float(self.log_scale.exp()) if self.kind == "fixed" else self.kind
        return {**super().config(), "scale": scale, "min_scale": self.min_scale}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.kind!r}"
