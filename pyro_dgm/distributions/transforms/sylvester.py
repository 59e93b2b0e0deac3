"""Sylvester transforms: planar ones with several units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.distributions.transforms.householder import reflect
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.root_finding import invert_increasing

__all__ = ["Sylvester"]


class Sylvester(Bijection):
    """A Sylvester transform: a planar one with :math:`M` hidden units instead of one.

    .. math:: y = x + Q R \\tanh(\\tilde R Q^\\top x + b), \\qquad
        \\log |\\det J| = \\sum_{i=1}^M \\log\\bigl(1 + r_{ii} \\tilde r_{ii} (1 - \\tanh^2(\\cdot)_i)\\bigr)

    :math:`Q` has orthonormal columns (a product of Householder reflections), :math:`R` and :math:`\\tilde R` are upper
    triangular with diagonals in :math:`(-1, 1)`, which makes it invertible. A few of them make a strong guide of a
    VAE. The inverse solves :math:`M` scalar equations by bisection, one after another: fast where only draws are
    scored, as in a guide.

    :param dim: length of the vectors.
    :param num_units: number :math:`M` of hidden units, at most ``dim``; ``None`` for ``dim``.
    :param num_reflections: reflections whose product is :math:`Q`; ``None`` for ``num_units``.
    :param context_dim: length of the context vectors; 0 for none. With a context all parameters are its functions.
    :param hidden: widths of the hidden layers of that function's network.
    :raises ValueError: if a size is out of range.

    Source: R. van den Berg, L. Hasenclever, J. M. Tomczak and M. Welling (2018), arXiv:1803.05649.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Sylvester
        >>> y, log_det = Sylvester(4, num_units=2).forward_and_log_det(torch.ones(5, 4))
        >>> y.shape, log_det.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """

    fast = "forward"

    def __init__(
        self,
        dim: int,
        *,
        num_units: int | None = None,
        num_reflections: int | None = None,
        context_dim: int = 0,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__(check_count("dim", dim), context_dim)
        units = check_count("num_units", dim if num_units is None else num_units)
        if units > dim:
            raise ValueError(f"num_units must be at most dim = {dim}, got {units}")
        self.num_units = units
        self.num_reflections = check_count("num_reflections", units if num_reflections is None else num_reflections)
        self._sizes = (self.num_reflections * dim, units * units, units * units, units)
        start = torch.cat([torch.randn(self._sizes[0]), 0.1 * torch.randn(sum(self._sizes[1:]))])
        self.parameters_of = ContextParameters(start / dim**0.5, self.context_dim, hidden)

    def _parts(self, context: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Reflections, both triangular matrices, and the bias."""
        vectors, first, second, bias = self.parameters_of(context).split(self._sizes, -1)
        return vectors.chunk(self.num_reflections, -1), self._triangular(first), self._triangular(second), bias

    def _triangular(self, flat: Tensor) -> Tensor:
        matrix = flat.reshape(*flat.shape[:-1], self.num_units, self.num_units)
        return matrix.triu(1) + matrix.diagonal(dim1=-2, dim2=-1).tanh().diag_embed()

    def _project(self, value: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """:math:`Q^\\top x`."""
        for vector in reversed(vectors):
            value = reflect(value, vector)
        return value[..., : self.num_units]

    def _lift(self, units: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """:math:`Q v`."""
        value = torch.nn.functional.pad(units, (0, self.event_shape[0] - self.num_units))
        for vector in vectors:
            value = reflect(value, vector)
        return value

    def _step(
        self, projected: Tensor, vectors: Sequence[Tensor], first: Tensor, second: Tensor, bias: Tensor
    ) -> ValueAndLogDet:
        """What is added to a value with this projection, and the log-determinant."""
        hidden = (_times(second, projected) + bias).tanh()
        slopes = first.diagonal(dim1=-2, dim2=-1) * second.diagonal(dim1=-2, dim2=-1) * (1 - hidden.square())
        return self._lift(_times(first, hidden), vectors), torch.log1p(slopes).sum(-1)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        vectors, *rest = self._parts(context)
        step, log_det = self._step(self._project(x, vectors), vectors, *rest)
        return x + step, log_det

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        vectors, first, second, bias = self._parts(context)
        target = self._project(y, vectors)
        found: list[Tensor] = []  # last unit first
        folds: list[Tensor] = []
        for i in reversed(range(self.num_units)):
            later = range(i + 1, self.num_units)
            shift = bias[..., i] + sum(second[..., i, j] * found[self.num_units - 1 - j] for j in later)
            rest = target[..., i] - sum(first[..., i, j] * folds[self.num_units - 1 - j] for j in later)
            outer, inner = first[..., i, i], second[..., i, i]

            def function(v: Tensor, shift: Tensor = shift, outer: Tensor = outer, inner: Tensor = inner) -> Tensor:
                return v + outer * (inner * v + shift).tanh()

            def slope(v: Tensor, shift: Tensor = shift, outer: Tensor = outer, inner: Tensor = inner) -> Tensor:
                return 1 + outer * inner * (1 - (inner * v + shift).tanh().square())

            v = invert_increasing(function, rest, derivative=slope)
            found.append(v)
            folds.append((inner * v + shift).tanh())
        projected = torch.stack(found[::-1], -1)
        step, log_det = self._step(projected, vectors, first, second, bias)
        return y - step, -log_det


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices times vectors. Many vectors to one matrix, as many draws for one context, are one matrix product."""
    return torch.einsum("...ij,...j->...i", matrix, vector)
