"""A likelihood from any callable that gives a distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_dgm.distributions.likelihoods.base import Likelihood

__all__ = ["CallableLikelihood"]


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
