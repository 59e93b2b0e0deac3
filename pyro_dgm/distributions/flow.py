"""A normalizing flow as a distribution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection, check_context

__all__ = ["FlowDistribution", "standard_normal"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def standard_normal(transform: Bijection, context: Tensor | None = None) -> TorchDistribution:
    """The standard normal on the input of a transform, in the dtype and on the device of its parameters.

    :param transform: the transform.
    :param context: whose dtype and device count where the transform has no tensor of its own.
    """
    tensors = itertools.chain(transform.parameters(), transform.buffers(), () if context is None else (context,))
    like = next((t for t in tensors if t.is_floating_point()), torch.zeros((), device="cpu"))
    zero = like.new_zeros(transform.event_shape)
    normal = dist.Normal(zero, torch.ones_like(zero), validate_args=False)
    return normal.to_event(len(transform.event_shape))


class FlowDistribution(TorchDistribution):
    r"""The distribution of :math:`y = f(z; c)`, where :math:`z` is base noise and :math:`f` a transform.

    .. math:: \log p(y \mid c) = \log p_0\bigl(f^{-1}(y; c)\bigr) +
              \log \left|\det \frac{\partial f^{-1}(y; c)}{\partial y}\right|

    It stands at any ``pyro.sample`` site: as a prior, as a likelihood, in a guide. A density costs one call of
    :meth:`~pyro_dgm.distributions.transforms.Bijection.inverse_and_log_det`, a draw one call of the forward direction.
    Parameters are used as they are at the time of the call. For a frozen flow, call ``requires_grad_(False)`` on the
    transform. For samplers and automatic guides, :class:`~pyro_dgm.distributions.FlowReparam` moves the latent to base
    space.

    :param transform: :math:`f`, from noise to data.
    :param base: distribution of :math:`z`, of the transform's event shape; batch dimensions on its right that belong to
        the event are made part of it. ``None`` is the standard normal.
    :param context: :math:`c`, ``batch + (context_dim,)``, where the transform takes one.
    :param remember: for guides. The density of the tensor that was drawn last from this object is what the draw gave,
        without a call of the inverse, which costs many passes in some flows. Any other tensor, an equal one too, and
        any tensor after a change of the parameters, is scored as usual.
    :raises TypeError: if ``transform`` is no :class:`~pyro_dgm.distributions.transforms.Bijection`
        (:func:`~pyro_dgm.distributions.transforms.as_bijection` makes one of any other transform), or ``base`` no
        distribution.
    :raises ValueError: if the event shape of ``base`` or the shape of the context does not fit.

    Source: D. J. Rezende and S. Mohamed (2015), arXiv:1505.05770; G. Papamakarios, E. Nalisnick, D. J. Rezende,
    S. Mohamed and B. Lakshminarayanan (2021), arXiv:1912.02762.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import FlowDistribution
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> flow = FlowDistribution(ElementwiseAffine(2, context_dim=3), context=torch.zeros(5, 3))
        >>> flow.batch_shape, flow.event_shape, flow.log_prob(flow.sample()).shape
        (torch.Size([5]), torch.Size([2]), torch.Size([5]))
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        transform: Bijection,
        base: TorchDistribution | None = None,
        context: Tensor | None = None,
        *,
        remember: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(transform, Bijection):
            raise TypeError(
                f"transform must be a Bijection, got {type(transform).__name__}: as_bijection(transform, event_shape) "
                "makes one of a transform of torch or Pyro"
            )
        if base is not None:
            base = _fitted(base, transform)
        batch = torch.Size() if base is None else torch.Size(base.batch_shape)
        batch = check_context(type(transform).__name__, transform.context_dim, context, batch, "base")
        self.transform, self.context = transform, context
        # The standard normal is made where it is asked for: densities do without.
        self._base = None if base is None else base.expand(batch)
        self.remember = remember
        self._last: tuple[Tensor, Tensor, tuple[int, ...]] | None = None
        self.has_rsample = base is None or bool(base.has_rsample)
        super().__init__(batch, transform.out_shape, validate_args=validate_args)

    @property
    def base(self) -> TorchDistribution:
        """The distribution of the noise, of this distribution's batch shape."""
        if self._base is not None:
            return self._base
        return standard_normal(self.transform, self.context).expand(self.batch_shape)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """The transform's codomain."""
        return self.transform.codomain

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        new = self._get_checked_instance(FlowDistribution, _instance)
        batch = torch.Size(batch_shape)
        new.transform, new.context, new.remember = self.transform, self.context, self.remember
        new._base = None if self._base is None else self._base.expand(batch)
        new._last, new.has_rsample = None, self.has_rsample
        super(FlowDistribution, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, of one call of the inverse."""
        last = self._last
        if last is not None and last[0] is value and last[2] == self._versions():
            # What was drawn without gradients has none to give.
            if last[1].requires_grad or not torch.is_grad_enabled():
                return last[1]
        if self._validate_args:
            self._validate_sample(value)
        noise, log_det = self.transform.inverse_and_log_det(value, self.context)
        return self._log_prob_of(noise, log_det)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A reparameterised draw: the transform of a draw of the base."""
        if self.remember:
            value, log_prob = self.rsample_with_log_prob(sample_shape)
            self._last = (value, log_prob, self._versions())
            return value
        return self.transform.forward_and_log_det(self.base.rsample(torch.Size(sample_shape)), self.context)[0]

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw without gradients."""
        with torch.no_grad():
            return self.transform.forward_and_log_det(self.base.sample(torch.Size(sample_shape)), self.context)[0]

    def rsample_with_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """A draw and its log-density, by one call of the forward direction.

        :param sample_shape: as of :meth:`rsample`.
        :returns: values ``sample_shape + batch + event`` and their log-densities in nats, ``sample_shape + batch``.
        """
        noise = self.base.rsample(torch.Size(sample_shape))
        value, log_det = self.transform.forward_and_log_det(noise, self.context)
        return value, self._log_prob_of(noise, -log_det)

    def _log_prob_of(self, noise: Tensor, log_det: Tensor) -> Tensor:
        """The base's log-density of noise, plus the inverse's log-determinant."""
        if self._base is not None:
            return self._base.log_prob(noise) + log_det
        # Written out for the standard normal: a third of the operations of Normal.log_prob.
        event = self.transform.event_shape
        total = log_det.sub(sum_rightmost(noise.square(), len(event)), alpha=0.5) - event.numel() * _HALF_LOG_TWO_PI
        batch = torch.broadcast_shapes(total.shape, self.batch_shape)
        return total if total.shape == batch else total.expand(batch)

    def _versions(self) -> tuple[int, ...]:
        """What changes when a parameter is written in place, as an optimiser does."""
        return tuple(0 if p.is_inference() else p._version for p in self.transform.parameters())


def _fitted(base: Any, transform: Bijection) -> Any:
    """A base whose event is the transform's input."""
    if not isinstance(base, torch.distributions.Distribution):
        raise TypeError(f"base must be a distribution, got {type(base).__name__}")
    shape, event = torch.Size(base.batch_shape) + torch.Size(base.event_shape), transform.event_shape
    missing = len(event) - len(base.event_shape)
    if missing < 0 or shape[len(shape) - len(event) :] != event or len(shape) < len(event):
        raise ValueError(
            f"base must have the event shape {tuple(event)} of the transform, got batch shape "
            f"{tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}"
        )
    return cast(Any, base).to_event(missing) if missing else base
