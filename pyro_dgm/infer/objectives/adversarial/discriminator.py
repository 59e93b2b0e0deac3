"""A classifier of two kinds of draws, whose logit is the logarithm of the ratio of their densities.

A classifier of draws from q (label 1) against draws from p (label 0), trained on the logistic loss, has at its
optimum the logit :math:`T = \\log q - \\log p`.  Objectives use T in the place of densities that they cannot compute.
One backward serves both: the program sees T with fixed weights, the network sees draws as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Discriminator", "check_network", "logistic_loss"]


class Discriminator(nn.Module):
    """The logit of a row of numbers being a draw of q.

    :param width: numbers in a row.
    :param hidden: units of each hidden layer; leaky rectifiers between them.
    :param network: makes another network from ``width``, with one output; instead of ``hidden``.
    :param like: gives dtype and device.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], network: Callable[[int], nn.Module] | None, like: Tensor
    ) -> None:
        super().__init__()
        self.width = width
        if network is None:
            layers: list[nn.Module] = []
            for units in hidden:
                layers += [nn.Linear(width, units), nn.LeakyReLU(0.2)]
                width = units
            last = nn.Linear(width, 1)
            # An untrained network gives the ratio 1, which changes nothing.
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.net: nn.Module = nn.Sequential(*layers, last)
        else:
            self.net = network(width)
        self.net.to(like.device, like.dtype)

    def forward(self, rows: Tensor) -> Tensor:
        return self.net(rows).squeeze(-1)

    def frozen(self, rows: Tensor) -> Tensor:
        """The logit, differentiable by ``rows`` and not by the weights."""
        return functional_call(self, {n: p.detach() for n, p in self.named_parameters()}, (rows,))

    def require(self, objective: Any, rows: Tensor) -> None:
        """Refuse another program's rows.

        :raises ValueError: for another number of values in a row, or another dtype.
        """
        dtype = next((p.dtype for p in self.parameters()), rows.dtype)
        if rows.shape[-1] != self.width or rows.dtype != dtype:
            raise ValueError(
                f"{type(objective).__name__} was built for {self.width} values a datum ({dtype}) and was given "
                f"{rows.shape[-1]} ({rows.dtype}): an objective with networks of its own belongs to one program, make "
                "a new one"
            )


def logistic_loss(logits: Tensor, right: float, kept: Tensor | None) -> Tensor:
    """The logistic loss of draws, ``(K, N)``, nats: a sum over the N that are kept, as the bound's, and a mean over K.

    :param right: 1 for draws of q, -1 for draws of p.
    """
    losses = nn.functional.softplus(-right * logits)
    return (losses if kept is None else torch.where(kept, losses, torch.zeros_like(losses))).sum() / len(losses)


def check_network(hidden: Sequence[int], network: Any) -> tuple[int, ...]:
    """The sizes of the hidden layers.

    :raises ValueError: for one that is not a positive integer.
    :raises TypeError: where ``network`` cannot be called.
    """
    sizes = tuple(hidden)
    if any(isinstance(h, bool) or not isinstance(h, int) or h < 1 for h in sizes):
        raise ValueError(f"hidden must be positive integers, one a layer, got {hidden!r}")
    if network is not None and (not callable(network) or isinstance(network, nn.Module)):
        raise TypeError(
            f"network must be a function from the number of inputs to a module, got {type(network).__name__}"
        )
    return sizes
