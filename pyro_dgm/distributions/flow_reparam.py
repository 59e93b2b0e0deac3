"""A site whose distribution is a flow, sampled in the space of the flow's base."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from pyro.infer.reparam.reparam import Reparam

from pyro_dgm.distributions.flow import FlowDistribution

__all__ = ["FlowReparam"]


class FlowReparam(Reparam):
    """Replace a latent site ``name`` with a flow as its distribution by its base noise ``name_base``.

    .. math:: x \\sim p_0, \\qquad y = f(x; c)

    The prior of the new latent is the base, most often a standard normal, however the flow bends it. Samplers and
    automatic guides then work in a space without the curvature of the prior. The program and its posterior are the
    same: ``name`` stays as a deterministic site. For latent sites, not for observed ones.

    :raises TypeError: if the site's distribution is no :class:`~pyro_dgm.distributions.FlowDistribution`.

    Source: the idea is that of Pyro's ``TransformReparam``; Hoffman et al. (2019), arXiv:1903.03704.

    Example::

        >>> import pyro
        >>> from pyro import poutine
        >>> from pyro_dgm.distributions import FlowDistribution, FlowReparam
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> prior = FlowDistribution(ElementwiseAffine(2))
        >>> model = poutine.reparam(lambda: pyro.sample("z", prior), config={"z": FlowReparam()})
        >>> [name for name in poutine.trace(model).get_trace().stochastic_nodes]
        ['z_base']
    """

    def apply(self, msg: Any) -> Any:
        name, value = msg["name"], msg["value"]
        fn, event_dim = self._unwrap(msg["fn"])
        if not isinstance(fn, FlowDistribution):
            raise TypeError(f"FlowReparam: site {name!r} must have a FlowDistribution, got {type(fn).__name__}")
        value_base = None if value is None else fn.transform.inv(value)
        base_event_dim = event_dim - len(fn.event_shape) + len(fn.transform.event_shape)
        base = self._wrap(fn.base, base_event_dim)
        value_base = pyro.sample(f"{name}_base", base, obs=value_base, infer={"is_observed": msg["is_observed"]})
        if value is None:
            value = fn.transform(value_base)
        return {"fn": dist.Delta(value, event_dim=event_dim).mask(False), "value": value, "is_observed": True}
