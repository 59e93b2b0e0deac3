"""A fixed permutation of the elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.ops.arguments import check_count, check_seed, check_sizes

__all__ = ["Permutation"]


class Permutation(Bijection):
    """A fixed permutation of a vector's elements.

    .. math:: y_i = x_{\\pi(i)}, \\qquad \\log |\\det J| = 0

    Put it between coupling or autoregressive parts, so that all elements take part. It is saved with the weights.

    :param dim: length of the vectors.
    :param order: ``"reverse"``, ``"random"``, or the permutation :math:`\\pi` itself.
    :param seed: of a random permutation; the global generators are left alone.
    :raises TypeError: if ``dim`` or ``seed`` is no integer.
    :raises ValueError: if ``order`` is no permutation of ``0, ..., dim - 1``.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Permutation
        >>> Permutation(3)(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [3.0, 2.0, 1.0]
    """

    order: Tensor

    def __init__(self, dim: int, order: str | Sequence[int] = "reverse", *, seed: int = 0) -> None:
        super().__init__(check_count("dim", dim))
        seed = check_seed(seed, optional=False)
        if isinstance(order, str):
            if order not in ("reverse", "random"):
                raise ValueError(f"order must be 'reverse', 'random' or a permutation, got {order!r}")
            if order == "reverse":
                index = torch.arange(dim - 1, -1, -1, device="cpu")
            else:
                generator = torch.Generator(device="cpu").manual_seed(seed)
                index = torch.randperm(dim, generator=generator, device="cpu")
        else:
            given = check_sizes("order", order, 0)
            if sorted(given) != list(range(dim)):
                raise ValueError(f"order must hold each of 0, ..., {dim - 1} once, got {given}")
            index = torch.tensor(given, device="cpu")
        self.register_buffer("order", index.to(torch.get_default_device()))

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        # Written to where the elements come from, which needs no inverse permutation.
        return torch.empty_like(y).index_copy(-1, self.order, y), y.new_zeros(y.shape[:-1])
