"""The contract of a transform: value and log-determinant in one call, in both directions, for any data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TransformModule, constraints
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor

from pyro_dgm.ops.arguments import check_count, check_sizes

__all__ = ["Bijection", "Conditioned", "Inverse", "check_context"]

ValueAndLogDet = tuple[Tensor, Tensor]


class Bijection(TransformModule, ConditionalTransform):
    """A learnable invertible map :math:`y = f(x; c)`, the base class of every transform.

    A subclass gives two functions, :meth:`_forward` and :meth:`_backward`. They return the value together with the
    log-determinant of the Jacobian, because the two share nearly all of their work. Everything that torch and Pyro ask
    of a transform follows from them, so that it can stand in ``dist.TransformedDistribution``,
    ``dist.ConditionalTransformedDistribution`` and ``NeuTraReparam``.

    Nothing is cached: log-probabilities are those of the parameters as they are now.

    **Context.** A transform with ``context_dim > 0`` depends on a context :math:`c` of shape ``(..., context_dim)``.
    The dimensions of the context before its last one broadcast against the batch dimensions of the value. A call of
    :meth:`condition` fixes the context.

    :param event_shape: shape of one value; everything left of it is batch.
    :param context_dim: length of the context vectors; 0 for a transform without context.
    :raises ValueError: if a size is not positive.
    """

    bijective = True
    #: the direction that is in closed form, or one pass: ``"forward"``, ``"inverse"``, ``"both"`` or ``"neither"``
    fast: str = "both"

    def __init__(self, event_shape: Sequence[int] | int, context_dim: int = 0) -> None:
        super().__init__()
        shape = (event_shape,) if isinstance(event_shape, int) else event_shape
        self.event_shape = torch.Size(check_sizes("event_shape", shape))
        self.context_dim = check_count("context_dim", context_dim, 0)

    # What a subclass gives.

    @abstractmethod
    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        """:math:`f(x; c)` and :math:`\\log |\\det \\partial f / \\partial x|`, the latter of the batch shape."""

    @abstractmethod
    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        """:math:`f^{-1}(y; c)` and :math:`\\log |\\det \\partial f^{-1} / \\partial y|`, of the batch shape."""

    @property
    def out_shape(self) -> torch.Size:
        """Event shape of the output; that of the input unless a subclass says otherwise."""
        return self.event_shape

    # What a user calls.

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """:math:`y = f(x; c)` and :math:`\\log |\\det \\partial y / \\partial x|`.

        :param x: values, ``batch + event_shape``.
        :param context: contexts, whose batch dimensions broadcast against those of ``x``.
        :returns: ``batch + out_shape`` and ``batch``.
        :raises ValueError: if a shape does not fit.
        """
        return self._forward(*self._checked("x", x, self.event_shape, context))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """:math:`x = f^{-1}(y; c)` and :math:`\\log |\\det \\partial x / \\partial y|`.

        :param y: values, ``batch + out_shape``.
        :param context: contexts, whose batch dimensions broadcast against those of ``y``.
        :returns: ``batch + event_shape`` and ``batch``.
        :raises ValueError: if a shape does not fit.
        """
        return self._backward(*self._checked("y", y, self.out_shape, context))

    def condition(self, context: Tensor) -> Bijection:
        """This transform at a fixed context; itself if it takes none.  Parameters are shared, not copied.

        :param context: ``batch + (context_dim,)``.
        """
        return Conditioned(self, context) if self.context_dim else self

    # The start from data.

    @property
    def starts_from_data(self) -> bool:
        """Whether :meth:`initialize` changes this transform: it has a scale and a shift that start from data."""
        return False

    @torch.no_grad()
    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set scales and shifts from data, so that behind each the inverse of the data has mean 0 and deviation 1.

        Those nearest to the data are set first, and the others from what the first ones make of the data. Nothing
        else changes, and nothing happens later by itself: call it once, before training.

        :param y: data, ``batch + out_shape``.
        :param context: contexts; not needed where only the part nearest to the data starts from them.
        :raises ValueError: if a shape does not fit, or a context that is needed is missing.

        Source: D. P. Kingma and P. Dhariwal (2018), arXiv:1807.03039; T. Salimans and D. P. Kingma (2016),
        arXiv:1602.07868.
        """
        given = context
        if context is None and self.context_dim:
            given = y.new_zeros(self.context_dim)
        y, given = self._checked("y", y, self.out_shape, given)
        self._start(y, None if context is None else given, True, False)

    def _start(self, value: Tensor, context: Tensor | None, inverse: bool, needed: bool) -> Tensor:
        """Set what starts from data, by values of the output (``inverse``) or of the input.

        :returns: these values on the other side, if they are ``needed``.
        """
        if not needed:
            return value
        if self.context_dim and context is None:
            raise ValueError(
                f"initialize needs the context: {type(self).__name__}, which takes one, stands between the data and "
                "a part that starts from them"
            )
        return (self._backward if inverse else self._forward)(value, context)[0]

    def _checked(
        self, name: str, value: Tensor, shape: torch.Size, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        kind = type(self).__name__
        batch = value.shape[: value.dim() - len(shape)]
        if value.dim() < len(shape) or value.shape[len(batch) :] != shape:
            raise ValueError(f"{kind}: {name} must end in the event shape {tuple(shape)}, got {tuple(value.shape)}")
        batch = check_context(kind, self.context_dim, context, batch, name)
        if context is None:
            return value, None
        return value.expand(batch + shape), context.expand((*batch, self.context_dim))

    # What torch and Pyro ask of a transform.

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return constraints.independent(constraints.real, len(self.out_shape))

    @property
    def inv(self) -> Bijection:
        """The inverse, which shares the parameters; ``t.inv.inv is t``."""
        if self._inv is None:
            # Not by attribute: a module that is registered on the one that it holds would be a circle of modules.
            self.__dict__["_inv"] = Inverse(self)
        return self._inv  # type: ignore[return-value]

    def with_cache(self, cache_size: int = 1) -> Bijection:
        """This transform: it never caches, since a cached value is stale after an optimiser step."""
        return self

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return _with_event(shape, self.event_shape, self.out_shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return _with_event(shape, self.out_shape, self.event_shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """:math:`\\log |\\det \\partial y / \\partial x|` at ``x``; :meth:`forward_and_log_det` gives both."""
        return self.forward_and_log_det(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self.forward_and_log_det(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_log_det(y)[0]

    def __repr__(self) -> str:
        return torch.nn.Module.__repr__(self)


def check_context(kind: str, context_dim: int, context: Tensor | None, batch: torch.Size, name: str) -> torch.Size:
    """Check that a context is there where one is taken, and fits.

    :param kind: what takes it, for the message.
    :param context_dim: length of the context vectors; 0 where none is taken.
    :param context: the context.
    :param batch: batch shape of what it goes with.
    :param name: of what it goes with.
    :returns: the batch shape of both.
    :raises ValueError: if it is missing, there is one too many, or its shape does not fit.
    """
    if not context_dim:
        if context is not None:
            raise ValueError(f"{kind} takes no context (context_dim is 0), got one of shape {tuple(context.shape)}")
        return batch
    wanted = f"{kind}: context must have shape batch + ({context_dim},)"
    if context is None:
        raise ValueError(f"{wanted}; pass it, or call condition(context) first")
    if not context.dim() or context.shape[-1] != context_dim:
        raise ValueError(f"{wanted}, got {tuple(context.shape)}")
    try:
        return torch.broadcast_shapes(batch, context.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"{wanted} whose batch broadcasts with the batch {tuple(batch)} of {name}, got {tuple(context.shape)}"
        ) from error


def _with_event(shape: Sequence[int], old: torch.Size, new: torch.Size) -> torch.Size:
    """A shape whose last dimensions, those of an event, are exchanged (a one broadcasts, as in torch)."""
    batch = len(shape) - len(old)
    if batch < 0 or any(n not in (1, m) for n, m in zip(shape[batch:], old, strict=True)):
        raise ValueError(f"the shape must end in the event shape {tuple(old)}, got {tuple(shape)}")
    return torch.Size((*shape[:batch], *new))


class Inverse(Bijection):
    """The inverse of a transform: forward and inverse exchanged, the same parameters.

    Made by ``transform.inv``. Use it to choose which direction is the fast one: a masked autoregressive flow for
    density estimation is the inverse of the one for sampling.

    :param transform: the transform.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> t = ElementwiseAffine(2)
        >>> t.inv.inv is t
        True
    """

    def __init__(self, transform: Bijection) -> None:
        super().__init__(transform.out_shape, transform.context_dim)
        self.transform = transform
        self.fast = {"forward": "inverse", "inverse": "forward"}.get(transform.fast, transform.fast)

    @property
    def out_shape(self) -> torch.Size:
        return self.transform.event_shape

    @property
    def inv(self) -> Bijection:
        return self.transform

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return self.transform.codomain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return self.transform.domain

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self.transform._backward(x, context)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self.transform._forward(y, context)

    @property
    def starts_from_data(self) -> bool:
        return self.transform.starts_from_data

    def _start(self, value: Tensor, context: Tensor | None, inverse: bool, needed: bool) -> Tensor:
        return self.transform._start(value, context, not inverse, needed)


class Conditioned(Bijection):
    """A transform at a fixed context, made by :meth:`Bijection.condition`.

    :param transform: a transform that takes a context.
    :param context: ``batch + (context_dim,)``.
    :raises ValueError: if the context has another length.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> t = ElementwiseAffine(2, context_dim=3).condition(torch.zeros(5, 3))
        >>> t(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, transform: Bijection, context: Tensor) -> None:
        super().__init__(transform.event_shape)
        check_context(type(transform).__name__, transform.context_dim, context, torch.Size(), "the values")
        self.transform = transform
        self.context = context
        self.fast = transform.fast

    @property
    def out_shape(self) -> torch.Size:
        return self.transform.out_shape

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return self.transform.domain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return self.transform.codomain

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._with_context(super().forward_shape(shape), self.out_shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._with_context(super().inverse_shape(shape), self.event_shape)

    def _with_context(self, shape: torch.Size, event: torch.Size) -> torch.Size:
        batch = torch.broadcast_shapes(shape[: len(shape) - len(event)], self.context.shape[:-1])
        return torch.Size((*batch, *event))

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self.transform.forward_and_log_det(x, self.context)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self.transform.inverse_and_log_det(y, self.context)

    @property
    def starts_from_data(self) -> bool:
        return self.transform.starts_from_data

    def _start(self, value: Tensor, context: Tensor | None, inverse: bool, needed: bool) -> Tensor:
        shape = self.transform.out_shape if inverse else self.transform.event_shape
        return self.transform._start(*self.transform._checked("value", value, shape, self.context), inverse, needed)
