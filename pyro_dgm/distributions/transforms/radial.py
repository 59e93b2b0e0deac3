"""Radial transforms: space expands or contracts around a point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.ops.arguments import check_count

__all__ = ["Radial"]


class Radial(Bijection):
    """A radial transform, which moves values towards a point or away from it.

    .. math:: y = x + \\frac{\\beta}{\\alpha + r} (x - z), \\qquad r = |x - z|, \\qquad
        \\log |\\det J| = (D - 1) \\log\\Bigl(1 + \\frac{\\beta}{\\alpha + r}\\Bigr)
        + \\log\\Bigl(1 + \\frac{\\alpha \\beta}{(\\alpha + r)^2}\\Bigr)

    with :math:`\\alpha > 0` and :math:`\\beta > -\\alpha`. Its inverse is in closed form.

    :param dim: length :math:`D` of the vectors.
    :param context_dim: length of the context vectors; 0 for none. With a context the parameters are its functions.
    :param hidden: widths of the hidden layers of that function's network.
    :raises ValueError: if a size is not positive.

    Source: D. J. Rezende and S. Mohamed (2015), arXiv:1505.05770.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Radial
        >>> y, log_det = Radial(3).forward_and_log_det(torch.ones(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, dim: int, *, context_dim: int = 0, hidden: Sequence[int] = ()) -> None:
        super().__init__(check_count("dim", dim), context_dim)
        self.parameters_of = ContextParameters(torch.randn(dim + 2) * 0.1, self.context_dim, hidden)

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        centre, alpha, beta = self.parameters_of(context).split((self.event_shape[0], 1, 1), -1)
        alpha = softplus(alpha) + 1e-3
        return centre, alpha[..., 0], (softplus(beta) - alpha)[..., 0]

    def _log_det(self, r: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        outer = alpha + r
        stretch = (self.event_shape[0] - 1) * torch.log1p(beta / outer)
        return stretch + torch.log1p(alpha * beta / outer.square())

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        centre, alpha, beta = self._parts(context)
        r = _norm(x - centre)
        return x + (beta / (alpha + r))[..., None] * (x - centre), self._log_det(r, alpha, beta)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        centre, alpha, beta = self._parts(context)
        outer = _norm(y - centre)
        # r^2 + (alpha + beta - outer) r - alpha outer = 0, by the form of its positive root that does not cancel.
        half = 0.5 * (alpha + beta - outer)
        root = (half.square() + alpha * outer).sqrt()
        r = torch.where(half > 0, alpha * outer / (half.abs() + root), half.abs() + root)
        x = centre + (y - centre) / (1 + beta / (alpha + r))[..., None]
        return x, -self._log_det(r, alpha, beta)


def _norm(value: Tensor) -> Tensor:
    """The Euclidean norm, with a finite gradient at zero."""
    return (value.square().sum(-1) + torch.finfo(value.dtype).tiny).sqrt()
