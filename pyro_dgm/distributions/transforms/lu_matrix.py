"""A learned invertible matrix by its triangular factors: what linear layers of vectors and of channels share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_dgm.ops.arguments import check_choice

__all__ = ["LUMatrix", "random_rotation"]


def random_rotation(dim: int) -> Tensor:
    """A random orthogonal matrix, ``(dim, dim)``, from torch's global generator, in torch's default dtype."""
    draws = torch.randn(dim, dim, dtype=torch.float64, device=torch.get_default_device())
    return torch.linalg.qr(draws)[0].to(torch.get_default_dtype())


class LUMatrix(nn.Module):
    """The matrix :math:`W = P L D U`, in products with it and in solutions of systems.

    :math:`L` and :math:`U` are triangular with ones on their diagonals, and learned. :math:`P` is a fixed permutation,
    and :math:`D` diagonal, with fixed signs and with absolute values :math:`e^{s}` that each call is given: a transform
    with a context may have others for each datum, and still solves systems of two matrices only.

    :param dim: rows of the matrix.
    :param initial: what it is at first: ``"identity"``, or ``"rotation"``, a random orthogonal matrix.
    :raises ValueError: for another ``initial``.

    Source: D. P. Kingma and P. Dhariwal (2018), arXiv:1807.03039.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms.lu_matrix import LUMatrix
        >>> matrix = LUMatrix(3, "rotation")
        >>> s = matrix.initial_log_scale
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(matrix.solve(matrix.multiply(x, s), s), x, atol=1e-5)
        True
    """

    order: Tensor
    sign: Tensor

    def __init__(self, dim: int, initial: str = "identity") -> None:
        super().__init__()
        check_choice("initial", initial, "identity", "rotation")
        self.lower, self.upper = nn.Parameter(torch.zeros(dim, dim)), nn.Parameter(torch.zeros(dim, dim))
        #: :math:`s` of the initial matrix
        self.initial_log_scale = torch.zeros(dim)
        self._signed = initial == "rotation"
        if self._signed:
            permutation, lower, upper = torch.linalg.lu(random_rotation(dim))
            diagonal = upper.diagonal()
            self.initial_log_scale = diagonal.abs().log()
            self.register_buffer("order", permutation.argmax(1))
            self.register_buffer("sign", diagonal.sign())
            with torch.no_grad():
                self.lower.copy_(lower.tril(-1))
                self.upper.copy_((upper / diagonal[:, None]).triu(1))

    def multiply(self, rows: Tensor, log_scale: Tensor) -> Tensor:
        """:math:`W x` of each row :math:`x`.

        :param rows: ``(..., dim)``.
        :param log_scale: :math:`s`, whose shape broadcasts against that of ``rows``.
        """
        eye = torch.eye(rows.shape[-1], dtype=self.lower.dtype, device=self.lower.device)
        rows = (rows @ (self.upper.triu(1) + eye).mT) * self._diagonal(log_scale)
        rows = rows @ (self.lower.tril(-1) + eye).mT
        return rows.index_select(-1, self.order) if self._signed else rows

    def solve(self, rows: Tensor, log_scale: Tensor) -> Tensor:
        """:math:`W^{-1} y` of each row :math:`y`; arguments as of :meth:`multiply`."""
        if self._signed:
            rows = rows.index_select(-1, self.order.argsort())
        rows = _solve(self.lower, rows, upper=False) * self._diagonal(-log_scale)
        return _solve(self.upper, rows, upper=True)

    def _diagonal(self, log_scale: Tensor) -> Tensor:
        return self.sign * log_scale.exp() if self._signed else log_scale.exp()


def _solve(factor: Tensor, rows: Tensor, upper: bool) -> Tensor:
    """The solutions of systems with one triangular matrix, ones on its diagonal, for all rows at once."""
    flat = rows.reshape(-1, rows.shape[-1])
    found = torch.linalg.solve_triangular(factor.mT, flat, upper=not upper, left=False, unitriangular=True)
    return found.reshape(rows.shape)
