"""A normalizing flow as a prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_dgm.distributions.flow import FlowDistribution
from pyro_dgm.distributions.priors.base import Prior, register
from pyro_dgm.distributions.transforms import Bijection, make_flow
from pyro_dgm.ops.arguments import check_count, check_sizes

__all__ = ["FlowPrior"]


@register("flow")
class FlowPrior(Prior):
    r"""The distribution of :math:`z = f(\epsilon; c)` for standard normal :math:`\epsilon`, with a learned transform.

    A latent that the guide has drawn is scored by the inverse of :math:`f`: the layers are turned to be fast in it.

    :param latent_dim: length of a latent.
    :param context_dim: length of the context vectors; 0 for none.
    :param transform: a name in ``pyro_dgm.distributions.transforms.TRANSFORMS``, or a
        :class:`~pyro_dgm.distributions.transforms.Bijection`, which is taken as it is.
    :param num_layers: layers, where ``transform`` is a name.
    :param hidden: widths of the hidden layers of its networks, where ``transform`` is a name.
    :raises TypeError, ValueError: for sizes that are no integers or out of range, or a transform of another shape.

    Source: C.-W. Huang et al. (2017), "Learnable explicit density for continuous latent space and variational
    inference", arXiv:1710.02248; X. Chen et al. (2017), "Variational lossy autoencoder", arXiv:1611.02731.

    Example::

        >>> from pyro_dgm.distributions import FlowPrior
        >>> prior = FlowPrior(2, hidden=(16,))()
        >>> prior.log_prob(prior.sample((7,))).shape
        torch.Size([7])
    """

    conditional = True

    def __init__(
        self,
        latent_dim: int,
        context_dim: int = 0,
        transform: str | Bijection = "spline_coupling",
        num_layers: int = 4,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(latent_dim, context_dim)
        self.num_layers = check_count("num_layers", num_layers)
        self.hidden = check_sizes("hidden", hidden)
        self.kind = transform if isinstance(transform, str) else None
        if self.kind is None:
            self.transform = make_flow(transform, self.latent_dim, context_dim=self.context_dim)
        else:
            self.transform = make_flow(
                self.kind,
                self.latent_dim,
                num_layers=self.num_layers,
                context_dim=self.context_dim,
                hidden=self.hidden,
            )

    def forward(self, *vectors: Tensor) -> dist.TorchDistribution:
        return FlowDistribution(self.transform, context=vectors[0] if vectors else None, validate_args=False)

    def config(self) -> dict[str, Any]:
        if self.kind is None:  # a transform given as an object: a configuration cannot rebuild it
            return {"name": "custom"}
        parts = {"transform": self.kind, "num_layers": self.num_layers, "hidden": list(self.hidden)}
        return {**super().config(), **parts}
