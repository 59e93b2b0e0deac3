"""Adaptive solvers of differential equations from torchdiffeq, for continuous flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.ops.arguments import check_positive

__all__ = ["solver"]


def solver(
    method: str = "dopri5",
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    adjoint: bool = False,
    options: dict[str, Any] | None = None,
) -> Callable[[Any, Tensor, float, float], Tensor]:
    """A solver for :class:`~pyro_dgm.distributions.transforms.Continuous`.

    An adaptive method takes as many steps as the tolerances need, so that it cannot be recorded as a graph or run
    under ``vmap``. It chooses one step for the whole batch.

    :param method: name of one of torchdiffeq's methods, such as ``"dopri5"``, ``"dopri8"`` or ``"bosh3"``.
    :param rtol: relative tolerance of a step.
    :param atol: absolute tolerance of a step.
    :param adjoint: gradients by solving the adjoint equation backwards, in constant memory, instead of through the
        steps. They are then exact up to the tolerances only.
    :param options: further options of the method.
    :returns: a function ``(function, y0, t0, t1) -> y1``.
    :raises ImportError: if torchdiffeq is not installed.
    :raises ValueError: if a tolerance is not positive, or torchdiffeq does not have the method.

    Example::

        >>> import torch
        >>> from pyro_dgm.interop import torchdiffeq
        >>> solve = torchdiffeq.solver("dopri5", rtol=1e-6)
        >>> round(solve(lambda t, y: -y, torch.ones(1), 0.0, 1.0).item(), 4)
        0.3679
    """
    try:
        import torchdiffeq
    except ImportError as error:
        raise ImportError("adaptive solvers need torchdiffeq: pip install 'pyro-dgm[ode]'") from error
    check_positive("rtol", rtol)
    check_positive("atol", atol)
    tolerances: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    # On an equation that is nothing, so that a method or an option that it does not have is refused here.
    torchdiffeq.odeint(lambda t, y: y, torch.zeros(1, device="cpu"), torch.arange(2.0, device="cpu"), **tolerances)

    def solve(function: Any, y0: Tensor, t0: float, t1: float) -> Tensor:
        times = y0.new_tensor([t0, t1])
        if not adjoint:
            return torchdiffeq.odeint(function, y0, times, **tolerances)[-1]
        tensors = tuple(getattr(function, "tensors", ()))
        return torchdiffeq.odeint_adjoint(function, y0, times, adjoint_params=tensors, **tolerances)[-1]

    return solve
