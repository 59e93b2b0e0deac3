"""A normal prior whose location and scale are learned, or are functions of a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_dgm.distributions.priors.base import Prior, register
from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.ops.arguments import check_sizes

__all__ = ["NormalPrior"]


@register("normal")
class NormalPrior(Prior):
    r"""Independent normal elements with learned location and scale.

    .. math:: p(z \mid c) = N\bigl(\mu(c), \mathrm{diag}\, \sigma^2(c)\bigr)

    Without a context :math:`\mu` and :math:`\sigma` are parameters. With one they are functions of it: a table row for
    each class, or a network of vectors. This is the prior of the conditional VAE of Sohn et al., and the
    class-conditional prior of semi-supervised ones. It starts as the standard normal.

    :param latent_dim: length of a latent.
    :param context_dim: length of the context vectors; 0 for none.
    :param hidden: widths of the hidden layers of the network of the context; none for an affine function.
    :raises TypeError, ValueError: for sizes that are no integers, or out of range.

    Source: K. Sohn, H. Lee and X. Yan (2015), "Learning structured output representation using deep conditional
    generative models"; D. P. Kingma, D. J. Rezende, S. Mohamed and M. Welling (2014), arXiv:1406.5298.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import NormalPrior
        >>> NormalPrior(2)().event_shape, NormalPrior(2, context_dim=3)(torch.zeros(5, 3)).batch_shape
        (torch.Size([2]), torch.Size([5]))
    """

    conditional = True

    def __init__(self, latent_dim: int, context_dim: int = 0, hidden: Sequence[int] = ()) -> None:
        super().__init__(latent_dim, context_dim)
        self.hidden = check_sizes("hidden", hidden)
        self.parameters_of = ContextParameters(torch.zeros(2, self.latent_dim), self.context_dim, self.hidden)

    def forward(self, *vectors: Tensor) -> dist.TorchDistribution:
        loc, log_scale = self.parameters_of(vectors[0] if vectors else None).unbind(-2)
        return dist.Normal(loc, log_scale.exp(), validate_args=False).to_event(1)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "hidden": list(self.hidden)}
