"""A normalizing flow as a distribution: it can stand at any sample site."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection

__all__ = ["FlowDistribution"]


class FlowDistribution(TorchDistribution):
    """The distribution of :math:`y = f(x; c)` with :math:`x` from a base distribution.

    .. math:: \\log p(y | c) = \\log p_0(f^{-1}(y; c)) + \\log |\\det \\partial f^{-1} / \\partial y|

    Use it as the density of data, or, once it was fitted, as a prior at a site of any program. Both terms come from one
    pass through the flow, where ``dist.TransformedDistribution`` takes two. For samplers and automatic guides
    :class:`~pyro_dgm.distributions.FlowReparam` puts the base distribution at the site.

    :param transform: the flow, from the base to the values.
    :param base: distribution with the flow's ``event_shape``; ``None`` takes the standard normal.
    :param context: ``batch + (context_dim,)``, for a flow that takes a context.
    :param validate_args: whether values are checked against the support.
    :raises TypeError: if ``transform`` is no :class:`~pyro_dgm.distributions.transforms.Bijection`.
    :raises ValueError: if the base has another event shape, or a context is missing or of another length.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import FlowDistribution
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> d = FlowDistribution(ElementwiseAffine(2))
        >>> d.log_prob(d.rsample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(
        self,
        transform: Bijection,
        base: Any = None,
        context: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(transform, Bijection):
            raise TypeError(
                "transform must be a transform of pyro_dgm.distributions.transforms (Wrapped takes those of torch and "
                f"Pyro), got {type(transform).__name__}"
            )
        if (context is None) != (not transform.context_dim):
            wanted = f"a context of shape batch + ({transform.context_dim},)" if transform.context_dim else "no context"
            raise ValueError(f"{type(transform).__name__} takes {wanted}, got {_shape_of(context)}")
        self.transform = transform if context is None else transform.condition(context)
        if base is None:
            like = next(_floating(transform), torch.zeros((), device="cpu") if context is None else context)
            zeros = like.new_zeros(transform.event_shape)
            base = dist.Normal(zeros, torch.ones_like(zeros), validate_args=False).to_event(zeros.dim())
        if base.event_shape != transform.event_shape:
            raise ValueError(
                f"base must have the flow's event shape {tuple(transform.event_shape)}, got {tuple(base.event_shape)}"
            )
        shape = self.transform.forward_shape(base.batch_shape + base.event_shape)
        batch = shape[: len(shape) - len(transform.out_shape)]
        self.base = base.expand(batch) if base.batch_shape != batch else base
        super().__init__(batch, transform.out_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return self.transform.codomain

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        new = self._get_checked_instance(FlowDistribution, _instance)
        batch = torch.Size(batch_shape)
        new.transform, new.base = self.transform, self.base.expand(batch)
        super(FlowDistribution, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x, log_det = self.transform.inverse_and_log_det(value)
        return self.base.log_prob(x) + log_det

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.transform(self.base.rsample(sample_shape))

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities by one pass of the flow, with no inverse.

        :param sample_shape: shape of the draws.
        :returns: ``sample_shape + batch_shape + event_shape`` and ``sample_shape + batch_shape``.
        """
        x = self.base.rsample(sample_shape)
        y, log_det = self.transform.forward_and_log_det(x)
        return y, self.base.log_prob(x) - log_det


def _floating(module: torch.nn.Module) -> Any:
    return (t for t in itertools.chain(module.parameters(), module.buffers()) if t.is_floating_point())


def _shape_of(context: Tensor | None) -> str:
    return "none" if context is None else f"one of shape {tuple(context.shape)}"
