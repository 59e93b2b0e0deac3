"""A learned invertible matrix by its triangular factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.distributions.transforms.lu_matrix import LUMatrix
from pyro_dgm.ops.arguments import check_count

__all__ = ["LULinear"]


class LULinear(Bijection):
    """An affine map with a learned matrix :math:`L U`, whose log-determinant costs nothing.

    .. math:: y = P L D(c)\\, U x + b(c), \\qquad \\log |\\det J| = \\sum_i s_i(c)

    with triangular :math:`L` and :math:`U`, ones on their diagonals, :math:`D = \\mathrm{diag}(\\pm e^{s})`, and a
    fixed permutation :math:`P`. Use it between couplings, where it learns how to mix the elements. From the identity
    it reaches no matrix that needs a permutation or another sign: start it from a rotation, or put a
    :class:`~pyro_dgm.distributions.transforms.Permutation` beside it. The inverse solves two triangular systems.

    :param dim: length of the vectors.
    :param initial: the matrix at first: ``"identity"``, or ``"rotation"``, a random orthogonal matrix.
    :param context_dim: length of the context vectors; 0 for none. With a context :math:`b` and :math:`s` are its
        functions.
    :param hidden: widths of the hidden layers of that function's network.
    :raises ValueError: if a size is not positive, or for another ``initial``.

    Source: D. P. Kingma and P. Dhariwal (2018), arXiv:1807.03039.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import LULinear
        >>> y, log_det = LULinear(3).forward_and_log_det(torch.ones(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self, dim: int, *, initial: str = "identity", context_dim: int = 0, hidden: Sequence[int] = ()
    ) -> None:
        super().__init__(check_count("dim", dim), context_dim)
        self.matrix = LUMatrix(dim, initial)
        start = self.matrix.initial_log_scale
        self.parameters_of = ContextParameters(torch.cat([torch.zeros_like(start), start]), self.context_dim, hidden)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        shift, log_scale = self.parameters_of(context).chunk(2, -1)
        return self.matrix.multiply(x, log_scale) + shift, log_scale.sum(-1).expand(x.shape[:-1])

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        shift, log_scale = self.parameters_of(context).chunk(2, -1)
        return self.matrix.solve(y - shift, log_scale), -log_scale.sum(-1).expand(y.shape[:-1])
