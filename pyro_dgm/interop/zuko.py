"""Flows of the package zuko as Pyro distributions and as bijections of this library."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet

__all__ = ["ZukoBijection", "ZukoFlow", "from_zuko", "import_zuko"]


def import_zuko() -> ModuleType:
    """The package zuko, imported so that distributions go on checking their arguments.

    ``import zuko`` switches the validation of :mod:`torch.distributions` off for the whole process: values outside of a
    support then get wrong densities and no error. This import leaves validation as it is, and switches it on again
    where an earlier import has switched it off (Pyro keeps a setting of its own, which zuko does not reach).

    :raises ImportError: if zuko is not installed.
    """
    try:
        import zuko
    except ImportError as error:
        raise ImportError("flows of zuko need the package zuko: pip install 'pyro-dgm[zuko]'") from error
    _restore_validation()
    return zuko


def _restore_validation() -> None:
    wanted = pyro.settings.get("validate_distributions_pyro")
    if wanted and not pyro.settings.get("validate_distributions_torch"):
        torch.distributions.Distribution.set_default_validate_args(True)


def from_zuko(flow: nn.Module, context: Tensor | None = None, support: Any = None) -> ZukoFlow:
    """A flow of zuko as a Pyro distribution, for any ``pyro.sample`` site.

    Unlike a zuko distribution, and unlike ``pyro.contrib.zuko.ZukoToPyro``, it has a support, so that HMC, NUTS and
    automatic guides work on the site. Densities are those of the parameters as they are now.

    :param flow: a lazy flow such as ``zuko.flows.NSF(features=3, context=5)``. Its parameters are shared; to train them
        in a Pyro model, register it (``pyro.module``, or an attribute of a ``PyroModule``).
    :param context: contexts, ``batch + (context features,)``, for a flow that takes one. Their batch is that of the
        distribution.
    :param support: where the flow has its mass; by default what its base and its transform say.
    :raises TypeError: if ``flow`` is no flow of zuko with a transform and a base.

    Example::

        >>> zuko = import_zuko()  # doctest: +SKIP
        >>> flow = from_zuko(zuko.flows.MAF(features=3, context=5), torch.zeros(7, 5))  # doctest: +SKIP
        >>> flow.batch_shape, flow.event_shape  # doctest: +SKIP
        (torch.Size([7]), torch.Size([3]))
    """
    _restore_validation()
    dim = 0 if context is None else context.shape[-1] if context.dim() else -1
    if dim < 0:
        raise ValueError("context must have shape batch + (context features,), got a scalar")
    return ZukoFlow(ZukoBijection(flow, dim), context, support=support)


class ZukoBijection(Bijection):
    """The transform of a zuko flow, from base to data, under the contract of this library's transforms.

    zuko's own transforms go from data to base; :meth:`inverse_and_log_det` is theirs, one call for value and
    log-determinant. How exact the other direction is depends on the flow: zuko inverts NAF, UNAF, SOSPF, BPF and GF
    by bisection in a bounded interval.

    :param flow: a lazy flow such as ``zuko.flows.NSF(features=3, context=5)``.
    :param context_dim: its number of context features.
    :raises TypeError: if ``flow`` is no flow of zuko with a transform and a base.
    :raises ValueError: if the flow takes contexts of another length.
    """

    def __init__(self, flow: nn.Module, context_dim: int = 0) -> None:
        if not isinstance(flow, nn.Module) or not all(callable(getattr(flow, k, None)) for k in ("transform", "base")):
            raise TypeError(
                "flow must be a lazy flow of zuko with a transform and a base, such as zuko.flows.NSF(features=3), "
                f"got {type(flow).__name__}"
            )
        first = next(
            (p for p in [*flow.parameters(), *flow.buffers()] if p.is_floating_point()), torch.zeros((), device="cpu")
        )
        context = first.new_zeros(context_dim) if context_dim else None
        try:
            with torch.no_grad():
                shape = flow(context).event_shape
                flow.transform(context)(first.new_zeros(shape))  # type: ignore[operator]
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"flow does not take contexts of {context_dim} features (0 for none), of the context given: {error}"
            ) from error
        super().__init__(tuple(shape), context_dim)
        self.flow = flow

    def base(self, context: Tensor | None = None) -> torch.distributions.Distribution:
        """The base distribution."""
        return self.flow.base(context)  # type: ignore[operator]

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return self.base(self._any_context()).support

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        inside = self._transform(self._any_context()).domain
        # zuko's transforms say they take every real number; those of a bounded base keep within its bounds.
        return self.domain if _is_real(inside) and not _is_real(self.domain) else inside

    def _any_context(self) -> Tensor | None:
        return next(self.flow.parameters()).new_zeros(self.context_dim) if self.context_dim else None

    def _transform(self, context: Tensor | None) -> Any:
        return self.flow.transform(context)  # type: ignore[operator]

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._transform(context).inv.call_and_ladj(x)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._transform(context).call_and_ladj(y)


def _is_real(constraint: Any) -> bool:
    while isinstance(constraint, type(constraints.independent(constraints.real, 1))):
        constraint = constraint.base_constraint
    return isinstance(constraint, type(constraints.real))


class ZukoFlow(TorchDistribution):
    """A zuko flow at a ``pyro.sample`` site, made by :func:`from_zuko`.

    :param bijection: the transform, with its base.
    :param context: contexts, ``batch + (context_dim,)``.
    :param batch_shape: batch shape; by default that of the contexts.
    :param support: where the flow has its mass.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        bijection: ZukoBijection,
        context: Tensor | None = None,
        batch_shape: torch.Size | None = None,
        support: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        self.bijection, self.context = bijection, context
        self._support = bijection.codomain if support is None else support
        if batch_shape is None:
            batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(torch.Size(batch_shape), bijection.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.bijection.base(self.context).has_rsample)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZukoFlow:
        batch_shape = torch.Size(batch_shape)
        torch.broadcast_shapes(self.batch_shape, batch_shape)
        return ZukoFlow(self.bijection, self.context, batch_shape, self._support, self._validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample_with_log_prob(sample_shape)[0]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample_with_log_prob(sample_shape)[0]

    def rsample_with_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities, of one call of the transform.

        :param sample_shape: shape of the independent draws.
        """
        base = self.bijection.base(self.context).expand(self.batch_shape)
        z = base.rsample(torch.Size(sample_shape)) if base.has_rsample else base.sample(torch.Size(sample_shape))
        value, log_det = self.bijection.forward_and_log_det(z, self.context)
        return value, base.log_prob(z) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z, log_det = self.bijection.inverse_and_log_det(value, self.context)
        total = self.bijection.base(self.context).log_prob(z) + log_det
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))
