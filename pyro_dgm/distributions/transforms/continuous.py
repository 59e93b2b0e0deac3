"""Continuous normalizing flows: the flow of a differential equation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.nn.dense import DenseFunction
from pyro_dgm.nn.mlp import MLP
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.ode import runge_kutta_4

__all__ = ["Continuous", "Dynamics"]

#: ``solver(function, y0, t0, t1) -> y1``
Solver = Callable[[Any, Tensor, float, float], Tensor]


class Dynamics:
    """The differential equation of a continuous flow: what a solver gets as its function.

    :ivar tensors: all tensors with a gradient that it computes with, which the adjoint method must be told of.
    """

    def __init__(
        self, g: DenseFunction, per_time: Tensor, noise: Tensor | None, tensors: Iterable[Tensor], keep_form: bool
    ) -> None:
        self._g, self._per_time, self._noise = g, per_time, noise
        self.tensors = tuple(t for t in tensors if t.requires_grad)
        # Computed from the weights, it would hide their gradient from the adjoint method, which differentiates each
        # evaluation on its own.
        self._form = g.trace_form() if keep_form and noise is None else None

    def __call__(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The time derivative of ``state``: the value, and behind it the log-determinant, ``batch + (dim + 1,)``."""
        z = state[..., :-1]
        shift = self._per_time * t
        if self._g.shift is not None:
            shift = shift + self._g.shift
        if self._noise is None:
            velocity, trace = self._g.value_and_trace(z, shift, self._form)
        else:
            at = self._g.linearize(z, shift)
            velocity, trace = at.value, (at.push(self._noise) * self._noise).sum(-1)
        return torch.cat([velocity, trace.unsqueeze(-1)], -1)


class Continuous(Bijection):
    """A continuous normalizing flow, FFJORD: noise moves along the velocity that a network gives.

    .. math:: \\frac{\\mathrm{d}z}{\\mathrm{d}t} = v(z, t; c), \\quad z(0) = x, \\quad y = z(1), \\qquad
              \\log |\\det J| = \\int_0^1 \\mathrm{tr}\\Bigl(\\frac{\\partial v}{\\partial z}\\Bigr) \\mathrm{d}t

    Both directions cost the same. Value and log-determinant are exact up to the error of the solver, of order
    :math:`h^4` in its step, and so is the inverse. It starts as the identity.

    **Trace.** ``"exact"`` takes the trace in closed form: with up to two hidden layers it costs as much as the velocity
    itself, in any dimension. ``"hutchinson"`` estimates it without bias from one random vector for each value, the same
    along the path; ``log_prob`` is then random. Prefer it only for three or more hidden layers in many dimensions.

    **Solver.** By default ``num_steps`` steps of the fourth-order Runge-Kutta method, which can be recorded as a graph
    and run under ``vmap``. Another one is given as a function ``solver(function, y0, t0, t1)`` that returns the state
    at ``t1``; ``pyro_dgm.interop.torchdiffeq.solver("dopri5")`` makes adaptive ones.

    :param dim: length of the vectors.
    :param hidden: widths of the network's hidden layers; the first of them gets time and context.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, smooth. One that is bounded, such as ``Tanh``, keeps the velocity bounded.
    :param num_steps: steps of the default solver, four evaluations each.
    :param trace: ``"exact"`` or ``"hutchinson"``.
    :param solver: another solver; ``num_steps`` then has no effect.
    :raises TypeError: if a size is no integer, or ``solver`` cannot be called.
    :raises ValueError: if a size is not positive, or ``trace`` is unknown.

    Source: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2018), arXiv:1810.01367; Chen, Rubanova, Bettencourt,
    Duvenaud (2018), arXiv:1806.07366.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Continuous
        >>> y, log_det = Continuous(3, hidden=(16,), num_steps=4).forward_and_log_det(torch.ones(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.Tanh,
        num_steps: int = 16,
        trace: str = "exact",
        solver: Solver | None = None,
    ) -> None:
        super().__init__(check_count("dim", dim), context_dim)
        if trace not in ("exact", "hutchinson"):
            raise ValueError(f"trace must be 'exact' or 'hutchinson', got {trace!r}")
        if solver is not None and not callable(solver):
            raise TypeError(
                f"solver must be a function (function, y0, t0, t1) -> y1 such as "
                f"pyro_dgm.interop.torchdiffeq.solver('dopri5') gives, or None; got {solver!r}"
            )
        self.num_steps, self.trace, self.solver = check_count("num_steps", num_steps), trace, solver
        self.network = MLP((dim,), (dim,), hidden, activation)
        first, last = self._linear[0], self._linear[-1]
        # Time and context are further inputs of the first layer, whose part does not change along the path.
        self.per_time = nn.Parameter(torch.randn_like(first.bias) / (dim + 1) ** 0.5)
        self.context = nn.Linear(self.context_dim, first.out_features, bias=False) if self.context_dim else None
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
            if first is last:
                self.per_time.zero_()

    @property
    def _linear(self) -> list[nn.Linear]:
        return [m for m in self.network.layers if isinstance(m, nn.Linear)]

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._solve(x, context, 0.0, 1.0)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._solve(y, context, 1.0, 0.0)

    def _solve(self, value: Tensor, context: Tensor | None, t0: float, t1: float) -> ValueAndLogDet:
        start = torch.cat([value, torch.zeros_like(value[..., :1])], -1)
        dynamics = self._dynamics(value, context)
        if self.solver is None:
            end = runge_kutta_4(dynamics, start, t0, t1, num_steps=self.num_steps)
        else:
            end = self.solver(dynamics, start, t0, t1)
        return end[..., :-1], end[..., -1]

    def _dynamics(self, value: Tensor, context: Tensor | None) -> Dynamics:
        linear = self._linear
        activations = [m for m in self.network.layers if not isinstance(m, nn.Linear)]
        shift = None if self.context is None else self.context(context)
        g = DenseFunction([a.weight for a in linear], [a.bias for a in linear], activations, shift)
        noise = torch.randint_like(value, 0, 2) * 2 - 1 if self.trace == "hutchinson" else None
        tensors = [*self.network.parameters(), self.per_time, *([] if shift is None else [shift])]
        return Dynamics(g, self.per_time, noise, tensors, keep_form=self.solver is None)
