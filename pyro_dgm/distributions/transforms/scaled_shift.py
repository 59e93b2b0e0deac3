"""An affine function of one number whose shift is in units of its scale."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.elementwise import AffineFamily, expanded

__all__ = ["ScaledShiftFamily"]


class ScaledShiftFamily(AffineFamily):
    """Shift, then scale: an :class:`AffineFamily` whose shift is measured in the scale that follows.

    .. math:: y = (x + \\theta_1) e^{s}, \\qquad s = s_{\\max} \\tanh(\\theta_2 / s_{\\max})

    Use it where scales span orders of magnitude, as in a funnel: an error of the network's shift is then the same
    number of standard deviations everywhere, where a shift that is added last is off by many of them in the neck.

    :param max_log_scale: bound of :math:`|s|`.
    :raises ValueError: if it is not positive.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Autoregressive
        >>> from pyro_dgm.distributions.transforms.scaled_shift import ScaledShiftFamily
        >>> y, log_det = Autoregressive(3, ScaledShiftFamily()).forward_and_log_det(torch.zeros(5, 3))
        >>> log_det.shape
        torch.Size([5])
    """

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        return (x + shift) * log_scale.exp(), expanded(log_scale, x)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters, -1.0)
        return torch.addcmul(-shift, y, log_scale.exp()), expanded(log_scale, y)
