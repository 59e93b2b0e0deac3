"""Reflections: rotations that are learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.ops.arguments import check_count

__all__ = ["Householder", "reflect"]


def reflect(value: Tensor, vector: Tensor) -> Tensor:
    """The reflection of a value at the hyperplane that is orthogonal to a vector, along the last dimension."""
    along = (value * vector).sum(-1, keepdim=True)
    return value - 2 * along * vector / vector.square().sum(-1, keepdim=True)


class Householder(Bijection):
    """A product of Householder reflections: an orthogonal matrix, :math:`\\log |\\det J| = 0`.

    .. math:: y = H_k \\cdots H_1 x, \\qquad H_i = I - 2 \\frac{v_i v_i^\\top}{|v_i|^2}

    After a diagonal Gaussian it makes a full covariance; between other layers it mixes the elements. ``dim``
    reflections reach every orthogonal matrix with determinant :math:`(-1)^{\\mathrm{dim}}`.

    :param dim: length of the vectors.
    :param num_reflections: number :math:`k` of reflections; ``None`` for ``dim``.
    :param context_dim: length of the context vectors; 0 for none. With a context the :math:`v_i` are its functions.
    :param hidden: widths of the hidden layers of that function's network.
    :raises ValueError: if a size is not positive.

    Source: J. M. Tomczak and M. Welling (2016), arXiv:1611.09630.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Householder
        >>> x = torch.ones(5, 3)
        >>> torch.allclose(Householder(3)(x).norm(dim=-1), x.norm(dim=-1))
        True
    """

    def __init__(
        self, dim: int, *, num_reflections: int | None = None, context_dim: int = 0, hidden: Sequence[int] = ()
    ) -> None:
        super().__init__(check_count("dim", dim), context_dim)
        self.num_reflections = check_count("num_reflections", dim if num_reflections is None else num_reflections)
        start = torch.randn(self.num_reflections * dim) / dim**0.5
        self.parameters_of = ContextParameters(start, self.context_dim, hidden)

    def _vectors(self, context: Tensor | None) -> list[Tensor]:
        return list(self.parameters_of(context).chunk(self.num_reflections, -1))

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        for vector in self._vectors(context):
            x = reflect(x, vector)
        return x, x.new_zeros(x.shape[:-1])

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        for vector in reversed(self._vectors(context)):
            y = reflect(y, vector)
        return y, y.new_zeros(y.shape[:-1])
