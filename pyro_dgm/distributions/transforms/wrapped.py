"""Transforms of torch, Pyro and users under the contract of this library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet

__all__ = ["Wrapped", "as_bijection"]


class Wrapped(Bijection):
    """A transform of torch or Pyro as a part of :class:`~pyro_dgm.distributions.transforms.Compose`.

    Use it for fixed maps such as ``SigmoidTransform`` or ``biject_to(constraint)``. The cache of the transform is
    switched off, since it is stale after an optimiser step.

    :param transform: any bijective ``torch.distributions.Transform``.
    :param event_shape: shape of one value of the input.
    :raises TypeError: if it is no transform.
    :raises ValueError: if it is not bijective.

    Example::

        >>> import torch
        >>> from torch.distributions.transforms import ExpTransform
        >>> from pyro_dgm.distributions.transforms import Wrapped
        >>> y, log_det = Wrapped(ExpTransform(), (2,)).forward_and_log_det(torch.zeros(5, 2))
        >>> log_det.shape
        torch.Size([5])
    """

    def __init__(self, transform: Transform, event_shape: Sequence[int] | int) -> None:
        super().__init__(event_shape)
        if not isinstance(transform, Transform):
            raise TypeError(f"transform must be a torch.distributions.Transform, got {type(transform).__name__}")
        if not transform.bijective:
            raise ValueError(
                f"transform must be bijective, or densities have no log-determinant; got {type(transform).__name__}"
            )
        # Only a transform with a cache that is on has to give one without: others need not implement with_cache.
        self.wrapped = transform.with_cache(0) if transform._cache_size else transform
        self._extra = len(self.event_shape) - transform.domain.event_dim
        if self._extra < 0:
            raise ValueError(
                f"{type(transform).__name__} acts on the last {transform.domain.event_dim} dimensions: event_shape "
                f"must have at least as many, got {tuple(self.event_shape)}"
            )

    @property
    def out_shape(self) -> torch.Size:
        return torch.Size(self.wrapped.forward_shape(self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return _independent(self.wrapped.domain, self._extra)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return _independent(self.wrapped.codomain, self._extra)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        y = self.wrapped(x)
        return y, self._log_det(x, y)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        x = self.wrapped.inv(y)
        return x, -self._log_det(x, y)

    def _log_det(self, x: Tensor, y: Tensor) -> Tensor:
        log_det = self.wrapped.log_abs_det_jacobian(x, y)
        if not self._extra:
            return log_det
        batch = x.dim() - len(self.event_shape)
        return log_det.expand(x.shape[: batch + self._extra]).flatten(batch).sum(-1)


def _independent(constraint: Any, extra: int) -> Any:
    return constraints.independent(constraint, extra) if extra else constraint


def as_bijection(transform: Any, event_shape: Sequence[int]) -> Bijection:
    """A :class:`Bijection` as it is, any other bijective transform wrapped.

    :raises TypeError: if it is no transform.
    :raises ValueError: if it is not bijective.
    """
    return transform if isinstance(transform, Bijection) else Wrapped(transform, event_shape)
