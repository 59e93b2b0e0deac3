"""Parameters that may depend on a context."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pyro_dgm.nn import make_network
from pyro_dgm.nn.build import zero_last_layer

__all__ = ["ContextParameters"]


class ContextParameters(nn.Module):
    """A vector of parameters, plus a network's output where there is a context.

    The network's last layer starts at zero, so that all contexts have the same parameters at first.

    :param initial: the parameters at first, ``(count,)``.
    :param context_dim: length of the context vectors; 0 for none.
    :param hidden: widths of the network's hidden layers; none for an affine function of the context.
    """

    def __init__(self, initial: Tensor, context_dim: int = 0, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.bias = nn.Parameter(initial)
        self.network: nn.Module | None = None
        if context_dim:
            self.network = zero_last_layer(make_network("mlp", (context_dim,), tuple(initial.shape), hidden))

    def forward(self, context: Tensor | None) -> Tensor:
        return self.bias if self.network is None else self.bias + self.network(context)
