"""One step of Langevin dynamics."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["langevin_step"]


def langevin_step(
    position: Tensor, gradient: Tensor, noise: Tensor, step_size: Tensor, temperature: float | Tensor = 1.0
) -> Tensor:
    r"""One step of the unadjusted Langevin algorithm towards :math:`e^{-U / T}`.

    .. math:: u' = u - \frac{\epsilon^2}{2 T} \nabla U(u) + \epsilon \xi, \qquad \xi \sim N(0, I)

    It is nothing but this formula, for what runs Langevin dynamics inside: kernels, distributions.  To sample, take
    :class:`pyro_dgm.infer.mcmc.Langevin`.

    :param position: :math:`u`.
    :param gradient: :math:`\nabla U(u)`, as ``position``.
    :param noise: :math:`\xi`, as ``position``.
    :param step_size: :math:`\epsilon`, a tensor that broadcasts with ``position``.
    :param temperature: :math:`T`; a number, or a tensor that broadcasts likewise.

    Source: G. Parisi (1981), "Correlation functions and computer simulations".

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import langevin_step
        >>> langevin_step(torch.ones(1), torch.ones(1), torch.ones(1), torch.tensor(0.2))
        tensor([1.1800])
    """
    drift = -0.5 * step_size.square() / temperature
    return torch.addcmul(torch.addcmul(position, gradient, drift), noise, step_size)
