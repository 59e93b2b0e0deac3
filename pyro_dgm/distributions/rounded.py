"""A continuous value seen through the level that it falls in."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["Rounded"]


class Rounded(TorchDistribution):
    """The level that a value in :math:`(0, 1)` falls in, for each element.

    It is a point mass on :math:`\\lfloor v L \\rfloor`.

    With a density of :math:`v` this is a distribution of data with ``num_levels`` levels, such as pixels:
    :math:`P(x) = \\int_{x/L}^{(x+1)/L} p(v) dv`. A guide that draws :math:`v` within the bin of the datum is called
    dequantisation.

    :param value: values in the unit interval.
    :param num_levels: number :math:`L` of levels.
    :param event_dim: dimensions of an event.

    Source: Theis, van den Oord, Bethge (2016), arXiv:1511.01844; Ho et al. (2019), arXiv:1902.00275.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import Rounded
        >>> d = Rounded(torch.tensor([0.1, 0.9]), 4, event_dim=1)
        >>> d.sample(), d.log_prob(torch.tensor([0.0, 3.0]))
        (tensor([0., 3.]), tensor(0.))
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, value: Tensor, num_levels: int, event_dim: int = 0) -> None:
        batch = value.dim() - event_dim
        self.value, self.num_levels = value, num_levels
        super().__init__(value.shape[:batch], value.shape[batch:], validate_args=False)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> Any:
        level = constraints.integer_interval(0, self.num_levels - 1)
        return constraints.independent(level, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rounded:
        value = self.value.expand(torch.Size(batch_shape) + self.event_shape)
        return Rounded(value, self.num_levels, len(self.event_shape))

    def _level(self) -> Tensor:
        return (self.value * self.num_levels).floor().clamp(0, self.num_levels - 1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._level().detach().expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        # A draw on the edge of its bin may be rounded into the next one: half a level is far from any such error.
        inside = (self.value * self.num_levels - value - 0.5).abs() < 0.5 + 1e-3
        result = torch.where(inside, 0.0, -torch.inf).to(self.value.dtype)
        return result.flatten(result.dim() - len(self.event_shape)).sum(-1) if self.event_shape else result
