"""Several transforms one after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.wrapped import as_bijection

__all__ = ["Compose"]


def common_context_dim(what: str, parts: Sequence[Bijection]) -> int:
    """The length of the contexts that those of several transforms take that take one; 0 if none does.

    :raises ValueError: if there are two lengths.
    """
    lengths = {part.context_dim for part in parts} - {0}
    if len(lengths) > 1:
        raise ValueError(f"{what} must take contexts of one length, got {sorted(lengths)}")
    return max(lengths, default=0)


def common_fast(parts: Sequence[Bijection]) -> str:
    """The direction that is fast in all of several transforms."""
    slow = {part.fast for part in parts} - {"both"}
    return "both" if not slow else slow.pop() if len(slow) == 1 else "neither"


class Compose(Bijection):
    """Transforms in sequence, one value and one log-determinant for all.

    .. math:: f = f_n \\circ \\ldots \\circ f_1, \\qquad \\log |\\det J_f| = \\sum_i \\log |\\det J_{f_i}|

    The context goes to the parts that take one.

    :param transforms: the transforms, first one first. Those of torch and Pyro are taken too (see
        :func:`~pyro_dgm.distributions.transforms.as_bijection`).
    :param event_shape: event shape of the input, needed only if no part has one of its own.
    :raises ValueError: if there is none, if shapes do not follow one another, or two parts want contexts of different
        lengths.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Compose, ElementwiseAffine
        >>> flow = Compose([ElementwiseAffine(2), ElementwiseAffine(2, context_dim=3)])
        >>> flow.condition(torch.zeros(5, 3))(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, transforms: Iterable[Any], event_shape: tuple[int, ...] | None = None) -> None:
        given = list(transforms)
        if not given:
            raise ValueError("Compose: transforms must hold at least one transform, got none")
        shape = event_shape
        if shape is None:
            first = next((t for t in given if isinstance(t, Bijection)), None)
            if first is None:
                raise ValueError("Compose: give event_shape=, as none of the transforms has an event shape of its own")
            shape = tuple(first.event_shape)
        parts: list[Bijection] = []
        for t in given:
            part = as_bijection(t, tuple(parts[-1].out_shape if parts else shape))
            if parts and part.event_shape != parts[-1].out_shape:
                raise ValueError(
                    f"Compose: {type(part).__name__} takes events of shape {tuple(part.event_shape)}, but "
                    f"{type(parts[-1]).__name__} before it gives {tuple(parts[-1].out_shape)}"
                )
            parts.append(part)
        super().__init__(parts[0].event_shape, common_context_dim("Compose: parts", parts))
        self.parts = nn.ModuleList(parts)
        self.fast = common_fast(parts)

    @property
    def out_shape(self) -> torch.Size:
        return self.parts[-1].out_shape  # type: ignore[return-value]

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return self.parts[0].domain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return self.parts[-1].codomain

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        total: Any = 0.0
        for part in self.parts:
            x, log_det = part._forward(x, context if part.context_dim else None)  # type: ignore[operator]
            total = total + log_det
        return x, total

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        total: Any = 0.0
        for part in reversed(self.parts):
            y, log_det = part._backward(y, context if part.context_dim else None)  # type: ignore[operator]
            total = total + log_det
        return y, total

    @property
    def starts_from_data(self) -> bool:
        return any(part.starts_from_data for part in self.parts)

    def _start(self, value: Tensor, context: Tensor | None, inverse: bool, needed: bool) -> Tensor:
        parts: list[Any] = list(reversed(self.parts) if inverse else self.parts)
        for i, part in enumerate(parts):
            # No further than the last part that starts from data: what is behind it may be costly, or want a context.
            further = needed or any(later.starts_from_data for later in parts[i + 1 :])
            if further or part.starts_from_data:
                value = part._start(value, context if part.context_dim else None, inverse, further)
        return value
