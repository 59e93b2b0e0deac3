"""Discrete levels as cells of a continuous variable: what dequantisation is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.ops.arguments import check_count

__all__ = ["IntoCell", "IntoLevels", "Quantized", "UniformCell"]

#: how far inside of its ends an interval is inverted: keeps logarithms finite where a value was rounded to an end
_MARGIN = 1e-6


class IntoLevels(Bijection):
    r"""The real line onto the interval of discrete levels, by a logistic function.

    .. math:: y = L \, \frac{\sigma(x) - m}{1 - 2 m}, \qquad m = 10^{-6}

    It is the last part of a flow over levels :math:`0, \ldots, L - 1`, whose cells :math:`[k, k + 1)` fill
    :math:`[0, L)`. The margin :math:`m` keeps the ends of the interval at finite distance; about its share of the
    probability is outside of the cells.

    :param event_shape: shape of one value.
    :param num_levels: :math:`L`, at least 2.
    :raises ValueError: if a size is out of range.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio (2017), arXiv:1605.08803.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.dequantization import IntoLevels
        >>> IntoLevels(1, 256)(torch.zeros(1)).tolist()
        [128.0]
    """

    def __init__(self, event_shape: Sequence[int] | int, num_levels: int) -> None:
        super().__init__(event_shape)
        self.num_levels = check_count("num_levels", num_levels, 2)
        self._scale = self.num_levels / (1 - 2 * _MARGIN)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        ends = -_MARGIN * self._scale, (1 - _MARGIN) * self._scale
        return constraints.independent(constraints.interval(*ends), len(self.event_shape))

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._scale * (x.sigmoid() - _MARGIN), self._log_det(x)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        # The margin, not a rounding error, is the distance from the ends of the cells; beyond them nothing is lost.
        share = (y / self._scale + _MARGIN).clamp(_MARGIN / 2, 1 - _MARGIN / 2)
        x = share.logit()
        return x, -self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        log_scale = torch.log(torch.full((), self._scale, dtype=x.dtype, device=x.device))
        return sum_rightmost(logsigmoid(x) + logsigmoid(-x) + log_scale, len(self.event_shape))


class IntoCell(Bijection):
    r"""The real line onto the cell of a discrete value, by a logistic function: :math:`y = k + \sigma(x)`.

    It is the last part of a flow over dequantisation noise.

    :param lower: :math:`k`, the lower ends of the cells, ``batch + event_shape``.
    :param event_dim: how many dimensions of it are the event.

    Source: J. Ho, X. Chen, A. Srinivas, Y. Duan and P. Abbeel (2019), "Flow++", arXiv:1902.00275.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.dequantization import IntoCell
        >>> IntoCell(torch.tensor([3.0, 0.0]), 1)(torch.zeros(2)).tolist()
        [3.5, 0.5]
    """

    def __init__(self, lower: Tensor, event_dim: int) -> None:
        super().__init__(tuple(lower.shape[lower.dim() - event_dim :]))
        self.lower = lower

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return constraints.independent(constraints.interval(self.lower, self.lower + 1), len(self.event_shape))

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self.lower + x.sigmoid(), self._log_det(x)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        x = (y - self.lower).clamp(_MARGIN, 1 - _MARGIN).logit()
        return x, -self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        return sum_rightmost(logsigmoid(x) + logsigmoid(-x), len(self.event_shape))


class UniformCell(TorchDistribution):
    """The uniform distribution on the cells :math:`[k, k + 1]` of discrete values, whose density is one.

    Unlike ``torch.distributions.Uniform``, the upper end is in it: a sum that was rounded to it has a density too.

    :param lower: :math:`k`, ``batch + event``.
    :param event_dim: how many dimensions of it are the event.

    Source: L. Theis, A. van den Oord and M. Bethge (2016), arXiv:1511.01844.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.dequantization import UniformCell
        >>> cell = UniformCell(torch.tensor([[3.0, 0.0]]), 1)
        >>> cell.log_prob(torch.tensor([[[4.0, 0.5]], [[4.5, 0.5]]])).tolist()
        [[0.0], [-inf]]
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(self, lower: Tensor, event_dim: int) -> None:
        self.lower = lower
        split = lower.dim() - event_dim
        super().__init__(lower.shape[:split], lower.shape[split:], validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """The cells."""
        return constraints.independent(constraints.interval(self.lower, self.lower + 1), self.event_dim)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UniformCell:
        shape = torch.Size(batch_shape) + self.event_shape
        return UniformCell(self.lower.expand(shape), self.event_dim)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw; nothing in it depends on a parameter."""
        shape = torch.Size(sample_shape) + self.lower.shape
        return self.lower + torch.rand(shape, dtype=self.lower.dtype, device=self.lower.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero in the cells, minus infinity elsewhere."""
        return _inside(value, self.lower, self.event_dim)


class Quantized(TorchDistribution):
    """The level of a continuous value: :math:`k = \\lfloor z \\rfloor`, known once :math:`z` is.

    .. math:: \\log p(k \\mid z) = 0 \\text{ if } k_i \\le z_i \\le k_i + 1 \\text{ for all elements, else } -\\infty

    It is the observed site of a model of discrete levels, whose latent :math:`z` has a density: the probability of
    :math:`k` is then the integral of the density over a cell. See ``FlowModel(dequantize=)``.

    :param value: :math:`z`, ``batch + event``.
    :param num_levels: levels 0 to ``num_levels - 1``; what is outside has the level at that end.
    :param event_dim: how many dimensions are the event.

    Source: L. Theis, A. van den Oord and M. Bethge (2016), arXiv:1511.01844.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.dequantization import Quantized
        >>> Quantized(torch.tensor([3.2, -0.1]), 256, 1).sample().tolist()
        [3.0, 0.0]
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, value: Tensor, num_levels: int, event_dim: int) -> None:
        self.value, self.num_levels = value, num_levels
        split = value.dim() - event_dim
        super().__init__(value.shape[:split], value.shape[split:], validate_args=False)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> Any:
        """The levels."""
        return constraints.independent(constraints.integer_interval(0, self.num_levels - 1), self.event_dim)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Quantized:
        shape = torch.Size(batch_shape) + self.event_shape
        return Quantized(self.value.expand(shape), self.num_levels, self.event_dim)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The level."""
        level = self.value.detach().floor().clamp(0, self.num_levels - 1)
        return level.expand(torch.Size(sample_shape) + self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero where the continuous value is in the cell of the level, minus infinity elsewhere."""
        return _inside(self.value, value.to(self.value.dtype), self.event_dim)


def _inside(value: Tensor, lower: Tensor, event_dim: int) -> Tensor:
    """Zero where values are in their cells, ends counted (rounding can put a value there), else minus infinity."""
    inside = ((value - lower) >= 0) & ((value - lower) <= 1)
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    return sum_rightmost(torch.where(inside, zero, zero - float("inf")), event_dim)
