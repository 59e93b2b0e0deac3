"""A learned invertible matrix by its triangular factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.ops.arguments import check_count

__all__ = ["LULinear"]


class LULinear(Bijection):
    """An affine map with a learned matrix :math:`L U`, whose log-determinant costs nothing.

    .. math:: y = L\\, U x + b(c), \\qquad \\log |\\det J| = \\sum_i s_i(c)

    with :math:`L` lower triangular, ones on its diagonal, and :math:`U` upper triangular, :math:`e^{s_i}` on its
    diagonal. Use it between couplings, where it learns how to mix the elements; put a
    :class:`~pyro_dgm.distributions.transforms.Permutation` beside it for matrices that need one. It starts as the
    identity. The inverse solves two triangular systems.

    :param dim: length of the vectors.
    :param context_dim: length of the context vectors; 0 for none. With a context :math:`b` and :math:`s` are its
        functions.
    :param hidden: widths of the hidden layers of that function's network.
    :raises ValueError: if a size is not positive.

    Source: D. P. Kingma and P. Dhariwal (2018), arXiv:1807.03039.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import LULinear
        >>> y, log_det = LULinear(3).forward_and_log_det(torch.ones(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, dim: int, *, context_dim: int = 0, hidden: Sequence[int] = ()) -> None:
        super().__init__(check_count("dim", dim), context_dim)
        self.lower, self.upper = nn.Parameter(torch.zeros(dim, dim)), nn.Parameter(torch.zeros(dim, dim))
        self.parameters_of = ContextParameters(torch.zeros(2 * dim), self.context_dim, hidden)

    def _factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.event_shape[0], dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        shift, log_scale = self.parameters_of(context).chunk(2, -1)
        lower, upper = self._factors()
        y = (x @ upper.mT + x * log_scale.exp()) @ lower.mT + shift
        return y, log_scale.sum(-1).expand(x.shape[:-1])

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        shift, log_scale = self.parameters_of(context).chunk(2, -1)
        lower, upper = self._factors()
        # Rows are vectors, so the systems are those of the transposed factors, from the right.
        half = torch.linalg.solve_triangular(lower, (y - shift)[..., None], upper=False, unitriangular=True)
        scaled = upper + log_scale.exp().diag_embed()
        x = torch.linalg.solve_triangular(scaled, half, upper=True)[..., 0]
        return x, -log_scale.sum(-1).expand(y.shape[:-1])
