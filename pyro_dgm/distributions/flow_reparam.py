"""Latents whose prior is a flow, sampled in base space."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam

from pyro_dgm.distributions.flow import FlowDistribution

__all__ = ["FlowReparam"]


class FlowReparam(Reparam):
    r"""Samples a site with a :class:`~pyro_dgm.distributions.FlowDistribution` in the flow's base space.

    .. math:: z \sim p_0, \qquad y = f(z; c)

    The site ``NAME`` becomes a latent site ``NAME_base``, with the base distribution, and ``NAME`` is computed from it.
    The joint density is the same in other coordinates. Where the flow is curved and the data say little, samplers
    and automatic guides find it easier, and no inverse or log-determinant is computed: a step costs one forward call.
    At an observed site the noise that belongs to the data is observed, with the log-determinant, so that the density
    stays that of the data.

    Use it as any reparameterisation of Pyro: ``poutine.reparam(model, {"y": FlowReparam()})``.

    :raises TypeError: when used, if the site has another distribution.

    Source: M. Hoffman, P. Sountsov, J. V. Dillon, I. Langmore, D. Tran and S. Vasudevan (2019), arXiv:1903.03704.

    Example::

        >>> import pyro, torch
        >>> from pyro import poutine
        >>> from pyro_dgm.distributions import FlowDistribution, FlowReparam
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> flow = ElementwiseAffine(2)
        >>> model = poutine.reparam(lambda: pyro.sample("y", FlowDistribution(flow)), {"y": FlowReparam()})
        >>> [name for name in poutine.trace(model).get_trace().stochastic_nodes]
        ['y_base']
    """

    def apply(self, msg: Any) -> Any:
        name, value, observed = msg["name"], msg["value"], msg["is_observed"]
        flow, event_dim = self._unwrap(msg["fn"])
        if not isinstance(flow, FlowDistribution):
            raise TypeError(f"FlowReparam: the site {name!r} must have a FlowDistribution, got {type(flow).__name__}")
        extra = event_dim - flow.event_dim
        base = self._wrap(flow.base, len(flow.transform.event_shape) + extra)
        log_density: Any = 0.0
        noise = None
        if value is not None:
            noise, log_det = flow.transform.inverse_and_log_det(value, flow.context)
            if observed:
                log_density = log_det.expand(torch.broadcast_shapes(log_det.shape, flow.batch_shape))
                log_density = log_density.flatten(log_density.dim() - extra).sum(-1) if extra else log_density
        noise = pyro.sample(f"{name}_base", base, obs=noise, infer={"is_observed": observed})
        if value is None:
            value = flow.transform.forward_and_log_det(noise, flow.context)[0]
        point: Any = dist.Delta(value, log_density, event_dim=event_dim, validate_args=False)
        return {"fn": point if observed else point.mask(False), "value": value, "is_observed": True}
