"""Planar transforms: a fold along a hyperplane."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.root_finding import invert_increasing

__all__ = ["Planar"]


class Planar(Bijection):
    """A planar transform, which stretches or squeezes space along one direction.

    .. math:: y = x + \\hat u \\tanh(w^\\top x + b), \\qquad
        \\log |\\det J| = \\log\\bigl(1 + w^\\top \\hat u\\, (1 - \\tanh^2(w^\\top x + b))\\bigr)

    where :math:`\\hat u` is :math:`u` moved along :math:`w` so that :math:`w^\\top \\hat u > -1`, which makes it
    invertible. Cheap and weak: a guide needs many of them. The inverse solves one scalar equation by bisection.

    :param dim: length of the vectors.
    :param context_dim: length of the context vectors; 0 for none. With a context :math:`u, w, b` are its functions, as
        in an amortised guide.
    :param hidden: widths of the hidden layers of that function's network.
    :raises ValueError: if a size is not positive.

    Source: D. J. Rezende and S. Mohamed (2015), arXiv:1505.05770.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Planar
        >>> y, log_det = Planar(3).forward_and_log_det(torch.ones(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    fast = "forward"

    def __init__(self, dim: int, *, context_dim: int = 0, hidden: Sequence[int] = ()) -> None:
        super().__init__(check_count("dim", dim), context_dim)
        self.parameters_of = ContextParameters(torch.randn(2 * dim + 1) * 0.1 / dim**0.5, self.context_dim, hidden)

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:math:`\\hat u`, :math:`w`, :math:`b` and :math:`w^\\top \\hat u`."""
        dim = self.event_shape[0]
        u, w, b = self.parameters_of(context).split((dim, dim, 1), -1)
        inner = (w * u).sum(-1, keepdim=True)
        tiny = torch.finfo(w.dtype).tiny ** 0.5
        u = u + (softplus(inner) - 1 - inner) * w / (w.square().sum(-1, keepdim=True) + tiny)
        return u, w, b[..., 0], (w * u).sum(-1)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        u, w, b, inner = self._parts(context)
        fold = ((x * w).sum(-1) + b).tanh()
        return x + u * fold[..., None], torch.log1p(inner * (1 - fold.square()))

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        u, w, b, inner = self._parts(context)
        along = invert_increasing(
            lambda a: a + inner * (a + b).tanh(),
            (y * w).sum(-1),
            derivative=lambda a: 1 + inner * (1 - (a + b).tanh().square()),
        )
        fold = (along + b).tanh()
        return y - u * fold[..., None], -torch.log1p(inner * (1 - fold.square()))
