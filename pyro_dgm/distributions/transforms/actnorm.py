"""A scale and a shift for each channel, which start from data."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_dgm.distributions.transforms.affine import ElementwiseAffine
from pyro_dgm.ops.arguments import check_sizes

__all__ = ["ActNorm"]


class ActNorm(ElementwiseAffine):
    """Glow's activation normalisation: a learned scale and shift for each channel of an image, or each feature.

    .. math:: y_{kij} = x_{kij}\\, e^{s_k(c)} + b_k(c), \\qquad \\log |\\det J| = H W \\sum_k s_k(c)

    Put it between the layers of a deep flow, where it takes the place of batch normalisation. ``initialize(y)``, on the
    part or on the whole flow, sets scale and shift so that :math:`x` has mean 0 and standard deviation 1 in each
    channel; without this call it starts as the identity. They are parameters like all others, saved with the weights,
    and no later call looks at the data again.

    :param event_shape: ``(C, H, W)``; an integer for vectors of that many features.
    :param context_dim: length of the context vectors; 0 for none. With one, :math:`s` and :math:`b` are affine in it.
    :raises ValueError: if a size is not positive.

    Source: D. P. Kingma and P. Dhariwal (2018), arXiv:1807.03039.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ActNorm
        >>> y = 5 + 3 * torch.randn(100, 2, 4, 4)
        >>> t = ActNorm((2, 4, 4))
        >>> t.initialize(y)
        >>> x = t.inv(y)
        >>> bool(x.mean().abs() < 1e-5), round(x.std().item(), 2)
        (True, 1.0)
    """

    def __init__(self, event_shape: Sequence[int] | int, context_dim: int = 0) -> None:
        shape = check_sizes("event_shape", (event_shape,) if isinstance(event_shape, int) else event_shape)
        super().__init__(shape, context_dim, parameter_shape=(*shape[:1], *[1] * len(shape[1:])))
