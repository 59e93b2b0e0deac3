"""A learned invertible matrix over the channels of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.distributions.transforms.lu_matrix import LUMatrix, random_rotation
from pyro_dgm.ops.arguments import check_choice, check_image

__all__ = ["InvertibleConv1x1"]


class InvertibleConv1x1(Bijection):
    """Glow's 1 x 1 convolution: the same learned matrix mixes the channels at every position of an image.

    .. math:: y_{:ij} = W D(c)\\, x_{:ij}, \\qquad
        \\log |\\det J| = H W \\bigl( \\log |\\det W| + \\sum_k s_k(c) \\bigr)

    It replaces the fixed permutation between couplings. By its factors, :math:`W = P L D U`, the determinant costs
    nothing; as a plain matrix it costs :math:`O(C^3)`, once for all positions and data. Both start as a random rotation
    and reach nearly every matrix. The factors keep the sign of the determinant and the permutation :math:`P` as they
    start; they cannot become singular.

    :param event_shape: ``(C, H, W)``.
    :param parametrization: ``"lu"``, or ``"plain"`` for the matrix itself.
    :param initial: the matrix at first: ``"rotation"`` (random) or ``"identity"``.
    :param context_dim: length of the context vectors; 0 for none. With a context, the diagonal matrix
        :math:`D(c) = \\mathrm{diag}(e^{s(c)})` is a function of it. In ``"lu"`` it stands between the factors.
    :param hidden: widths of the hidden layers of that function's network.
    :raises ValueError: for another name, or a shape that is not that of an image.

    Source: D. P. Kingma and P. Dhariwal (2018), arXiv:1807.03039.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import InvertibleConv1x1
        >>> y, log_det = InvertibleConv1x1((4, 2, 2)).forward_and_log_det(torch.ones(5, 4, 2, 2))
        >>> y.shape, log_det.abs().max().item() < 1e-5
        (torch.Size([5, 4, 2, 2]), True)
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        parametrization: str = "lu",
        initial: str = "rotation",
        context_dim: int = 0,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__(check_image("event_shape", event_shape), context_dim)
        check_choice("parametrization", parametrization, "lu", "plain")
        check_choice("initial", initial, "rotation", "identity")
        channels = self.event_shape[0]
        self.matrix: LUMatrix | None = None
        self.scale: ContextParameters | None = None
        if parametrization == "lu":
            self.matrix = LUMatrix(channels, initial)
            self.scale = ContextParameters(self.matrix.initial_log_scale.clone(), self.context_dim, hidden)
        else:
            self.weight = nn.Parameter(
                random_rotation(channels)
                if initial == "rotation"
                else torch.eye(channels, device=torch.get_default_device())
            )
            if self.context_dim:
                self.scale = ContextParameters(torch.zeros(channels), self.context_dim, hidden)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        log_scale = self._log_scale(x, context)
        if self.matrix is None:
            kernel = self.weight * log_scale.exp()[..., None, :]
        else:
            kernel = self.matrix.multiply(self._identity(log_scale), log_scale[..., None, :]).mT
        return self._mixed(kernel, x), self._log_det(log_scale, x)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        log_scale = self._log_scale(y, context)
        if self.matrix is None:
            kernel = torch.linalg.inv(self.weight) * (-log_scale).exp()[..., None]
        else:
            kernel = self.matrix.solve(self._identity(log_scale), log_scale[..., None, :]).mT
        return self._mixed(kernel, y), -self._log_det(log_scale, y)

    def _log_scale(self, value: Tensor, context: Tensor | None) -> Tensor:
        return value.new_zeros(value.shape[-3]) if self.scale is None else self.scale(context)

    def _identity(self, log_scale: Tensor) -> Tensor:
        channels = self.event_shape[0]
        eye = torch.eye(channels, dtype=log_scale.dtype, device=log_scale.device)
        return eye.expand((*log_scale.shape, channels))

    def _mixed(self, kernel: Tensor, value: Tensor) -> Tensor:
        return (kernel @ value.flatten(-2)).reshape(value.shape)

    def _log_det(self, log_scale: Tensor, value: Tensor) -> Tensor:
        one = log_scale.sum(-1)
        if self.matrix is None:
            one = one + torch.linalg.slogdet(self.weight).logabsdet
        return (one * (value.shape[-1] * value.shape[-2])).expand(value.shape[:-3])
