"""Flows of the package zuko as Pyro distributions and as bijections of this library."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyro_dgm.distributions.flow import FlowDistribution
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


def _as_pyro(base: Any) -> Any:
    """A distribution of torch as the same one of Pyro, so that it can stand at a site; others as they are."""
    if isinstance(base, torch.distributions.Independent):
        inner = _as_pyro(base.base_dist)
        return inner.to_event(base.reinterpreted_batch_ndims) if isinstance(inner, TorchDistribution) else base
    if isinstance(base, torch.distributions.Normal):
        return dist.Normal(base.loc, base.scale, validate_args=False)
    if isinstance(base, torch.distributions.Uniform):
        return dist.Uniform(base.low, base.high, validate_args=False)
    return base


class ZukoFlow(FlowDistribution):
    """A zuko flow at a ``pyro.sample`` site, made by :func:`from_zuko`.

    It is a :class:`~pyro_dgm.distributions.FlowDistribution` with the flow's own base.

    :param bijection: the transform, with its base.
    :param context: contexts, ``batch + (context_dim,)``.
    :param batch_shape: batch shape; by default that of the contexts.
    :param support: where the flow has its mass; by default what the bijection says.
    :raises ValueError: if the context does not fit.

    Example::

        >>> zuko = import_zuko()  # doctest: +SKIP
        >>> flow = ZukoFlow(ZukoBijection(zuko.flows.NSF(features=3)), batch_shape=torch.Size([7]))  # doctest: +SKIP
        >>> flow.sample().shape, flow.log_prob(torch.zeros(3)).shape  # doctest: +SKIP
        (torch.Size([7, 3]), torch.Size([7]))

    Source: the package is F. Rozet et al., zuko (2022), doi:10.5281/zenodo.7625672.
    """

    def __init__(
        self,
        bijection: ZukoBijection,
        context: Tensor | None = None,
        batch_shape: torch.Size | None = None,
        support: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        base = _as_pyro(bijection.base(context))
        if batch_shape is not None:
            base = base.expand(torch.Size(batch_shape))
        self._support = bijection.codomain if support is None else support
        super().__init__(bijection, base, context, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZukoFlow:
        new: Any = self._get_checked_instance(ZukoFlow, _instance)
        new._support = self._support
        super().expand(batch_shape, new)
        return new
