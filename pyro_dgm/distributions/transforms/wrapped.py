"""Transforms of torch, Pyro and users under the contract of this library."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.conditional import ConditionalTransform
from pyro.distributions.torch_transform import ComposeTransformModule
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform
from torch.distributions.transforms import _InverseTransform

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet

__all__ = ["Wrapped", "as_bijection"]


class Wrapped(Bijection):
    """A transform of torch or Pyro as a part of :class:`~pyro_dgm.distributions.transforms.Compose`.

    Use it for fixed maps such as ``SigmoidTransform`` or ``biject_to(constraint)``, and for Pyro's flows. The cache of
    the transform is switched off, since it is stale after an optimiser step. What a transform cannot do by itself,
    such as an inverse that it has only in its cache, it cannot do here: the page of
    :class:`~pyro_dgm.models.FlowModel` has a table.

    :param transform: any bijective ``torch.distributions.Transform``; with ``context_dim``, one of Pyro's conditional
        transforms.
    :param event_shape: shape of one value of the input.
    :param context_dim: length of the context vectors; 0 for none.
    :raises TypeError: if it is no transform, or no conditional one where there is a context.
    :raises ValueError: if it is not bijective.

    Example::

        >>> import torch
        >>> from torch.distributions.transforms import ExpTransform
        >>> from pyro_dgm.distributions.transforms import Wrapped
        >>> y, log_det = Wrapped(ExpTransform(), (2,)).forward_and_log_det(torch.zeros(5, 2))
        >>> log_det.shape
        torch.Size([5])
    """

    def __init__(
        self, transform: Transform | ConditionalTransform, event_shape: Sequence[int] | int, context_dim: int = 0
    ) -> None:
        super().__init__(event_shape, context_dim)
        if self.context_dim and not isinstance(transform, ConditionalTransform):
            raise TypeError(
                f"transform must be a ConditionalTransform of Pyro where context_dim is positive, got "
                f"{type(transform).__name__}"
            )
        if not self.context_dim and not isinstance(transform, Transform):
            raise TypeError(f"transform must be a torch.distributions.Transform, got {type(transform).__name__}")
        given: Any = transform
        if not given.bijective:
            raise ValueError(
                f"transform must be bijective, or densities have no log-determinant; got {type(transform).__name__}"
            )
        self.wrapped = given if self.context_dim else _without_cache(given)
        self._extra = len(self.event_shape) - given.domain.event_dim
        if self._extra < 0:
            raise ValueError(
                f"{type(transform).__name__} acts on the last {given.domain.event_dim} dimensions: event_shape "
                f"must have at least as many, got {tuple(self.event_shape)}"
            )

    @property
    def out_shape(self) -> torch.Size:
        if self.context_dim:  # Pyro's keep the shape
            return self.event_shape
        return torch.Size(self.wrapped.forward_shape(self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return _independent(self.wrapped.domain, self._extra)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return _independent(self.wrapped.codomain, self._extra)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        transform = self._at(context)
        y = transform(x)
        return y, self._log_det(transform, x, y)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        transform = self._at(context)
        x = transform.inv(y)
        return x, -self._log_det(transform, x, y)

    def _at(self, context: Tensor | None) -> Any:
        """The transform with its context, and without a cache."""
        if context is None:
            return self.wrapped
        return _without_cache(self.wrapped.condition(context))

    def _log_det(self, transform: Any, x: Tensor, y: Tensor) -> Tensor:
        log_det: Tensor = transform.log_abs_det_jacobian(x, y)
        if not self._extra:
            return log_det
        batch = x.dim() - len(self.event_shape)
        return log_det.expand(x.shape[: batch + self._extra]).flatten(batch).sum(-1)


def _without_cache(transform: Any) -> Any:
    """The same transform with the same parameters, and without a cache, also where it cannot be made without one."""
    if isinstance(transform, ComposeTransform):
        # Its own cache is not the only one: each part has one.
        parts = [_without_cache(part) for part in transform.parts]
        if not transform._cache_size and all(new is old for new, old in zip(parts, transform.parts, strict=True)):
            return transform
        return ComposeTransformModule(parts) if isinstance(transform, nn.Module) else ComposeTransform(parts)
    if isinstance(transform, _InverseTransform):
        return _without_cache(transform.inv).inv
    if not transform._cache_size:
        return transform
    try:
        return transform.with_cache(0)
    except NotImplementedError:  # Pyro's learnable transforms: a shallow copy has the same parameters
        bare = copy.copy(transform)
        bare.__dict__.update(_cache_size=0, _inv=None, _cached_x_y=(None, None))
        return bare


def _independent(constraint: Any, extra: int) -> Any:
    return constraints.independent(constraint, extra) if extra else constraint


def as_bijection(transform: Any, event_shape: Sequence[int]) -> Bijection:
    """A :class:`Bijection` as it is, any other bijective transform wrapped.

    :raises TypeError: if it is no transform.
    :raises ValueError: if it is not bijective.
    """
    if isinstance(transform, Bijection):
        return transform
    if isinstance(transform, _InverseTransform):
        # The inverse of a module is none: its parameters would be nobody's.
        return Wrapped(transform.inv, transform.forward_shape(tuple(event_shape))).inv
    return Wrapped(transform, event_shape)
