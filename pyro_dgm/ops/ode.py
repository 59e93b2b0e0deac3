"""Steps of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyro_dgm.ops.arguments import check_count

__all__ = ["runge_kutta_4"]


def runge_kutta_4(
    function: Callable[[float, Tensor], Tensor], y0: Tensor, t0: float, t1: float, *, num_steps: int
) -> Tensor:
    """Solve :math:`\\mathrm{d}y/\\mathrm{d}t = f(t, y)` from :math:`t_0` to :math:`t_1` by the classical method.

    .. math:: y_{n+1} = y_n + \\tfrac{h}{6} (k_1 + 2 k_2 + 2 k_3 + k_4), \\qquad h = (t_1 - t_0) / N

    Steps are of equal size, so that the operations are the same on each call. The error is of order :math:`h^4`.
    Gradients are those of the discrete steps.

    :param function: :math:`f`, of the time and the value.
    :param y0: value at ``t0``.
    :param t0: time at the start.
    :param t1: time at the end; it may be before ``t0``.
    :param num_steps: number of steps :math:`N`; each evaluates the function four times.
    :returns: value at ``t1``.
    :raises TypeError: if ``num_steps`` is no integer.
    :raises ValueError: if it is not positive.

    Source: Kutta (1901), Zeitschrift fuer Mathematik und Physik 46, 435-453.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops.ode import runge_kutta_4
        >>> y = runge_kutta_4(lambda t, y: -y, torch.ones(()), 0.0, 1.0, num_steps=10)
        >>> round(y.item(), 5)
        0.36788
    """
    check_count("num_steps", num_steps)
    h = (t1 - t0) / num_steps
    y = y0
    for n in range(num_steps):
        t = t0 + n * h
        k1 = function(t, y)
        k2 = function(t + h / 2, y + h / 2 * k1)
        k3 = function(t + h / 2, y + h / 2 * k2)
        k4 = function(t + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * (k2 + k3) + k4)
    return y
