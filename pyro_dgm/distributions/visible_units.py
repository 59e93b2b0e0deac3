"""Kinds of visible units of Boltzmann machines: exponential families given the hidden units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from pyro_dgm.ops.binary import draw_binary

__all__ = ["VISIBLE_UNITS", "BernoulliUnits", "CategoricalUnits", "GaussianUnits", "ProbabilityUnits", "VisibleUnits"]


class VisibleUnits(ABC):
    r"""Visible units whose law given the hidden ones depends on :math:`\eta = b + W h` alone.

    .. math:: -E(v, h) = g(v, b) + s(v)^\top W h + c^\top h

    Values have shape ``(..., *event_shape)``; everything else is flat, ``(..., size)``, one row of :math:`W` an entry.
    """

    #: word that ``RBM(visible=...)`` takes
    name: str
    #: whether values are discrete, so that there are finitely many
    binary = False
    #: constraint of one unit's number
    element: Any = constraints.boolean

    def __init__(self, size: int, event_shape: Sequence[int]) -> None:
        #: rows of the weight matrix
        self.size = size
        self.event_shape = torch.Size(event_shape)
        if self.event_shape.numel() != size:
            raise ValueError(f"event_shape must have {size} elements, got {tuple(self.event_shape)}")

    @property
    def support(self) -> Any:
        """Constraint of a value."""
        return constraints.independent(self.element, len(self.event_shape))

    def flat(self, value: Tensor) -> Tensor:
        """``(..., *event_shape)`` to ``(..., size)``."""
        return value.reshape(*value.shape[: value.dim() - len(self.event_shape)], self.size)

    def shaped(self, flat: Tensor) -> Tensor:
        """Undo :meth:`flat`."""
        return flat.reshape(*flat.shape[:-1], *self.event_shape)

    def statistics(self, flat: Tensor) -> Tensor:
        """:math:`s(v)`; by default :math:`v`."""
        return flat

    def bias_term(self, flat: Tensor, bias: Tensor) -> Tensor:
        r""":math:`g(v, b)`, summed over units; by default :math:`b^\top v`."""
        return flat @ bias

    @abstractmethod
    def log_partition(self, eta: Tensor, bias: Tensor) -> Tensor:
        r""":math:`\log \sum_v e^{g(v, b) + s(v)^\top (\eta - b)}`, summed over units."""

    @abstractmethod
    def mean(self, eta: Tensor) -> Tensor:
        """Mean of the units given :math:`\\eta`, flat."""

    @abstractmethod
    def draw(self, eta: Tensor) -> Tensor:
        """Units drawn given :math:`\\eta`, flat."""

    @abstractmethod
    def base_bias(self, mean: Tensor) -> Tensor:
        """The bias of independent units with this mean, kept away from the ends."""

    @abstractmethod
    def check(self, value: Tensor, argument: str) -> None:
        """Refuse values outside the support, with what to do about it."""


class BernoulliUnits(VisibleUnits):
    """Units in {0, 1}: :math:`g = b^\\top v`, :math:`s = v`.

    :param num_visible: how many.
    :param event_shape: shape of a value; ``(num_visible,)`` by default.
    """

    name = "bernoulli"
    binary = True

    def __init__(self, num_visible: int, event_shape: Sequence[int] | None = None) -> None:
        super().__init__(num_visible, event_shape or (num_visible,))

    def log_partition(self, eta: Tensor, bias: Tensor) -> Tensor:
        return softplus(eta).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        return eta.sigmoid()

    def draw(self, eta: Tensor) -> Tensor:
        return draw_binary(eta)

    def base_bias(self, mean: Tensor) -> Tensor:
        return mean.clamp(0.01, 0.99).logit()

    def check(self, value: Tensor, argument: str) -> None:
        outside = (value != 0) & (value != 1)
        if bool(outside.any()):
            raise ValueError(
                f"{argument} holds {int(outside.sum())} values outside {{0, 1}}, which a Bernoulli visible unit cannot "
                "be: binarise the data (datasets.dynamic_binarization), or take visible='gaussian'"
            )


class ProbabilityUnits(BernoulliUnits):
    """Bernoulli units whose data may be probabilities, as a layer below gives them."""

    element = constraints.unit_interval

    def check(self, value: Tensor, argument: str) -> None:
        outside = (value < 0) | (value > 1)
        if bool(outside.any()):
            raise ValueError(f"{argument} holds {int(outside.sum())} values outside [0, 1], which are no probabilities")


class GaussianUnits(VisibleUnits):
    r"""Real units of standard deviation :math:`\sigma`.

    :math:`g = -\|v - b\|^2 / 2 \sigma^2` and :math:`s = v / \sigma^2`.  Given the hidden units they are
    :math:`N(b + W h, \sigma^2)`.

    :param num_visible: how many.
    :param scale: :math:`\sigma`, fixed; standardise the data for 1.
    :param event_shape: shape of a value; ``(num_visible,)`` by default.
    """

    name = "gaussian"
    element = constraints.real

    def __init__(self, num_visible: int, scale: float = 1.0, event_shape: Sequence[int] | None = None) -> None:
        super().__init__(num_visible, event_shape or (num_visible,))
        self.scale = float(scale)

    def statistics(self, flat: Tensor) -> Tensor:
        return flat / self.scale**2

    def bias_term(self, flat: Tensor, bias: Tensor) -> Tensor:
        return -0.5 * ((flat - bias) / self.scale).square().sum(-1)

    def log_partition(self, eta: Tensor, bias: Tensor) -> Tensor:
        constant = 0.5 * math.log(2.0 * math.pi) + math.log(self.scale)
        return (0.5 * (eta.square() - bias.square()) / self.scale**2 + constant).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        return eta

    def draw(self, eta: Tensor) -> Tensor:
        return eta + self.scale * torch.randn_like(eta)

    def base_bias(self, mean: Tensor) -> Tensor:
        return mean

    def check(self, value: Tensor, argument: str) -> None:
        return


class CategoricalUnits(VisibleUnits):
    """One-hot units of K categories each, values ``(..., num_visible, K)``: :math:`g = b^\\top v`, :math:`s = v`.

    :param num_visible: how many units.
    :param num_categories: K, at least 2.
    """

    name = "categorical"

    def __init__(self, num_visible: int, num_categories: int) -> None:
        super().__init__(num_visible * num_categories, (num_visible, num_categories))
        self.num_categories = num_categories

    def log_partition(self, eta: Tensor, bias: Tensor) -> Tensor:
        return self.shaped(eta).logsumexp(-1).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        return self.flat(self.shaped(eta).softmax(-1))

    def draw(self, eta: Tensor) -> Tensor:
        logits = self.shaped(eta)
        gumbel = -torch.empty_like(logits).exponential_().log()
        return self.flat(one_hot((logits + gumbel).argmax(-1), self.num_categories).to(eta.dtype))

    def base_bias(self, mean: Tensor) -> Tensor:
        return mean.clamp_min(0.01).log()

    def check(self, value: Tensor, argument: str) -> None:
        bad = ((value != 0) & (value != 1)).any(-1) | (value.sum(-1) != 1)
        if bool(bad.any()):
            raise ValueError(
                f"{argument} holds {int(bad.sum())} units that are not one-hot over {self.num_categories} categories: "
                f"torch.nn.functional.one_hot(index, {self.num_categories}) makes them so"
            )


#: kinds of visible units by the word that ``RBM(visible=...)`` takes
VISIBLE_UNITS: dict[str, type[VisibleUnits]] = {c.name: c for c in (BernoulliUnits, GaussianUnits, CategoricalUnits)}
