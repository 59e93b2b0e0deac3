"""A given location and scale."""

from __future__ import annotations

from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet

__all__ = ["LocationScale"]


class LocationScale(Bijection):
    """Vectors scaled and shifted by given tensors, such as the output of an encoder.

    .. math:: y = \\mu + e^{s} \\odot x, \\qquad \\log |\\det J| = \\sum_i s_i

    :class:`~pyro_dgm.distributions.transforms.ElementwiseAffine` has parameters of its own instead.

    :param loc: :math:`\\mu`, ``batch + (dim,)``; the batch broadcasts with that of the values.
    :param log_scale: :math:`s`, of the same shape.
    :raises ValueError: if the shapes differ, or there is no dimension.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import LocationScale
        >>> LocationScale(torch.ones(2), torch.zeros(2))(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        if not loc.dim() or loc.shape != log_scale.shape:
            raise ValueError(
                f"loc and log_scale must have one shape batch + (dim,), got {tuple(loc.shape)} and "
                f"{tuple(log_scale.shape)}"
            )
        super().__init__(loc.shape[-1])
        # Not as parameters of this transform, which they would be if they were leaves: it is made anew in each call.
        self.__dict__["loc"], self.__dict__["log_scale"] = loc, log_scale

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        y = self.loc + self.log_scale.exp() * x
        return y, self.log_scale.sum(-1).expand(y.shape[:-1])

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        x = (y - self.loc) * (-self.log_scale).exp()
        return x, -self.log_scale.sum(-1).expand(x.shape[:-1])
