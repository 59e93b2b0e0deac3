"""Autoregressive networks: the outputs for each input depend only on the inputs before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyro_dgm.ops.arguments import check_count, check_sizes

__all__ = ["MaskedLinear", "MaskedMLP", "check_order"]


def check_order(order: Sequence[int] | None, dim: int) -> tuple[int, ...]:
    """Check an order of ``dim`` inputs, first one first; ``None`` is the order in which they stand.

    :raises TypeError: if it is no sequence of integers.
    :raises ValueError: if it is no permutation of ``0, ..., dim - 1``.
    """
    if order is None:
        return tuple(range(dim))
    given = check_sizes("order", order, 0)
    if sorted(given) != list(range(dim)):
        raise ValueError(f"order must hold each of 0, ..., {dim - 1} once, got {given}")
    return given


class MaskedLinear(nn.Linear):
    """An affine map some of whose weights are zero.

    .. math:: y = (M \\odot W) x + b

    :param mask: booleans ``(out, in)``; true where the output may depend on the input.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn.masked import MaskedLinear
        >>> MaskedLinear(torch.ones(3, 2, dtype=torch.bool).tril())(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        # Floating, so that it follows the dtype and device of the module and the product needs no conversion.
        self.register_buffer("mask", mask.to(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.masked())

    def masked(self) -> tuple[Tensor, Tensor]:
        """The weight as it acts, and the bias."""
        return self.weight * self.mask, self.bias


class MaskedMLP(nn.Module):
    """A network with several outputs for each input, which depend on the inputs before it and on a context.

    .. math:: \\theta_i = g_i(x_{j :\\, j \\text{ before } i},\\; c), \\qquad i = 1, \\ldots, D

    Every hidden unit has a degree: the number of first inputs that it may see. A unit sees units of the layer before
    whose degree is not greater, and the outputs of the input at place :math:`m` see units of degree below
    :math:`m`. Degrees are spread evenly, so that nothing is random. The context is not masked.

    The last layer starts at zero, so that a flow whose parameters it gives starts as the identity.

    :param dim: number of inputs :math:`D`.
    :param num_outputs: outputs for each input.
    :param hidden: widths of the hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class called without arguments between layers.
    :param order: the inputs, first one first: a permutation of ``0, ..., dim - 1``; ``None`` for the natural one.
    :param residual: whether each hidden layer after the first is added to its input; widths must then be equal.
    :param num_features: numbers that stand for each input, side by side (an angle's cosine and sine are two).
    :raises TypeError: if a size is no integer.
    :raises ValueError: if a size is not positive, the order is no permutation, or ``residual`` with unequal widths.

    Source: Germain, Gregor, Murray, Larochelle (2015), arXiv:1502.03509; with residual blocks Nash, Durkan (2019),
    arXiv:1904.05626.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import MaskedMLP
        >>> MaskedMLP(4, 2, hidden=(16, 16), context_dim=3)(torch.zeros(5, 4), torch.zeros(5, 3)).shape
        torch.Size([5, 4, 2])
    """

    def __init__(
        self,
        dim: int,
        num_outputs: int,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Sequence[int] | None = None,
        residual: bool = False,
        *,
        num_features: int = 1,
    ) -> None:
        super().__init__()
        self.dim, self.num_outputs = check_count("dim", dim), check_count("num_outputs", num_outputs)
        self.context_dim = check_count("context_dim", context_dim, 0)
        widths = check_sizes("hidden", hidden)
        if residual and len(set(widths)) > 1:
            raise ValueError(f"hidden must hold equal widths where residual=True, got {widths}")
        self.order, self.residual = check_order(order, self.dim), bool(residual)
        place = torch.empty(self.dim, dtype=torch.long, device="cpu")
        place[list(self.order)] = torch.arange(self.dim, device="cpu")
        # The input at place m (from 0) has degree m + 1; without a context a unit of degree 0 would be a constant.
        lowest = 0 if self.context_dim or self.dim == 1 else 1
        degrees = (place + 1).repeat_interleave(check_count("num_features", num_features))
        masks = []
        for width in widths:
            spread = lowest + torch.arange(width, device="cpu") * (self.dim - lowest) // width
            masks.append(spread[:, None] >= degrees)
            degrees = spread
        outputs = place.repeat(self.num_outputs)
        # Inputs have their own degree, which an output without hidden layers must lie above.
        masks.append(outputs[:, None] >= degrees)
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        self.activations = nn.ModuleList(activation() for _ in widths)
        self.context = nn.Linear(self.context_dim, masks[0].shape[0], bias=False) if self.context_dim else None
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.zero_()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters of every input.

        :param x: ``batch + (dim * num_features,)``.
        :param context: ``batch + (context_dim,)``.
        :returns: ``batch + (dim, num_outputs)``.
        """
        out = self._run(self._weights(), x, None if self.context is None else self.context(context))
        # All first outputs, then all second ones: what works on outputs one by one then reads along memory.
        return out.reshape(*out.shape[:-1], self.num_outputs, self.dim).transpose(-1, -2)

    def sequential(self, context: Tensor | None = None) -> Callable[[Tensor, int], Tensor]:
        """Parameters of one input at a time, for the inverse of a flow, which finds one input after another.

        What does not depend on the inputs is done once, and the last layer gives the outputs asked for alone.

        :param context: ``batch + (context_dim,)``.
        :returns: a function of ``x`` and an index, that gives ``batch + (num_outputs,)``. Elements of ``x`` that do not
            come before the index may be anything finite.
        """
        layers = self._weights()
        added = None if self.context is None else self.context(context)
        weight, bias = layers.pop()

        def parameters_of(x: Tensor, index: int) -> Tensor:
            rows = slice(index, None, self.dim)
            # Without hidden layers the context goes to the outputs.
            part = added[..., rows] if added is not None and not layers else added
            return self._run([*layers, (weight[rows], bias[rows])], x, part)

        return parameters_of

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        """Masked weight and bias of each layer."""
        return [cast(MaskedLinear, layer).masked() for layer in self.layers]

    def _run(self, layers: Sequence[tuple[Tensor, Tensor]], x: Tensor, added: Tensor | None) -> Tensor:
        """The layers one after another; what the context gives is added behind the first one."""
        (weight, bias), *others = layers
        x = nn.functional.linear(x, weight, bias)
        if added is not None:
            x = x + added
        hidden = x
        # There is one activation less than layers: each but the last layer is followed by one.
        for i, (activation, (weight, bias)) in enumerate(zip(self.activations, others, strict=True)):
            out = activation(x)
            hidden = hidden + out if self.residual and i else out
            x = nn.functional.linear(hidden, weight, bias)
        return x
