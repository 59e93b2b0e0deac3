"""Invertible residual networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.nn.dense import DenseFunction, Linearized
from pyro_dgm.nn.lipschitz import LipschitzMLP, LipSwish
from pyro_dgm.ops.arguments import check_count, check_number

__all__ = ["Residual"]

#: safeguarded steps of Newton's method behind the fixed-point iteration, where the Jacobian is at hand
NEWTON_STEPS = 6


class Residual(Bijection):
    """A residual block that is invertible, because its network is a contraction.

    .. math:: y = x + g(x; c), \\qquad \\mathrm{Lip}(g) \\le \\ell < 1, \\qquad
              \\log |\\det J| = \\log \\det (I + J_g) = \\sum_{k \\ge 1} \\tfrac{(-1)^{k+1}}{k} \\mathrm{tr}(J_g^k)

    **Log-determinant.** ``"exact"`` takes the determinant of the Jacobian, for events of up to about a hundred
    dimensions. ``"roulette"`` estimates the series without bias from one random vector for each value; the number of
    terms is random, and each term is divided by the probability that it is reached. Its gradient is an unbiased
    estimate of its own, which stores no powers. With it ``log_prob`` is random, and as the number of terms is drawn on
    each call, it cannot be recorded as a graph or run under ``vmap``.

    **Inverse.** Fixed-point iteration :math:`x \\leftarrow y - g(x)`, with an error of
    :math:`\\ell^n \\lVert g \\rVert / (1 - \\ell)` after :math:`n` steps. With ``"exact"`` steps of Newton's method
    follow, each used only where it brings the solution nearer than the plain step would. Gradients are those of the
    implicit function. Forward is the fast direction; for density estimation use ``.inv``.

    It starts as the identity.

    :param dim: length of the vectors.
    :param hidden: widths of the network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class of slope at most one. It should be smooth.
    :param lipschitz: the constant :math:`\\ell`, below one.
    :param log_det: ``"exact"`` or ``"roulette"``.
    :param num_iterations: fixed-point steps; ``None`` takes 20 before Newton's steps, and 100 with ``"roulette"``.
    :param num_terms: terms of the series that are always taken, with ``"roulette"``.
    :param stop_probability: probability that the series stops after each further term; ``None`` takes
        :math:`1 - \\ell`, for which the variance is finite whatever the weights are. A larger one is faster, and its
        variance finite as long as the norm of :math:`J_g` stays below the square root of one minus it.
    :raises TypeError: if a size is no integer.
    :raises ValueError: if a number is out of range, ``log_det`` is unknown, or the activation is too steep.

    Source: Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen (2019), arXiv:1811.00995; roulette: Chen, Behrmann, Duvenaud,
    Jacobsen (2019), arXiv:1906.02735.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Residual
        >>> y, log_det = Residual(3, hidden=(16,)).forward_and_log_det(torch.ones(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    fast = "forward"

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = LipSwish,
        lipschitz: float = 0.97,
        log_det: str = "exact",
        num_iterations: int | None = None,
        num_terms: int = 4,
        stop_probability: float | None = None,
    ) -> None:
        super().__init__(check_count("dim", dim), context_dim)
        check_number("lipschitz", lipschitz)
        if not 0 < lipschitz < 1:
            raise ValueError(f"lipschitz must be above 0 and below 1, or the block has no inverse; got {lipschitz}")
        if log_det not in ("exact", "roulette"):
            raise ValueError(f"log_det must be 'exact' or 'roulette', got {log_det!r}")
        check_number("stop_probability", stop_probability, optional=True)
        if stop_probability is not None and not 0 < stop_probability < 1:
            raise ValueError(f"stop_probability must be above 0 and below 1, got {stop_probability}")
        self.lipschitz, self.log_det = float(lipschitz), log_det
        steps = check_count("num_iterations", num_iterations, optional=True)
        self.num_iterations = steps or (20 if log_det == "exact" else 100)
        self.num_terms = check_count("num_terms", num_terms, 0)
        self.stop_probability = 1 - self.lipschitz if stop_probability is None else float(stop_probability)
        self.network = LipschitzMLP(dim, dim, hidden, self.context_dim, activation, self.lipschitz)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        value, log_det = self._value_and_log_det(self.network.function(context), x)
        return x + value, log_det

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        g = self.network.function(context)
        with torch.no_grad():
            x = y
            for _ in range(self.num_iterations):
                x = y - g(x)
        if self.log_det == "exact":
            with torch.no_grad():
                for _ in range(NEWTON_STEPS):
                    x = self._newton_step(g, x, y)
                slope = _plus_identity(g.linearize(x).jacobian())
            # One more step with the slope as a constant: it has the gradient of the implicit function.
            x = x - _solve(slope, x + g(x) - y)
        else:
            # The same steps from the solution: their gradient is the Neumann series of the implicit function's.
            for _ in range(self.num_iterations if torch.is_grad_enabled() else 1):
                x = y - g(x)
        return x, -self._value_and_log_det(g, x)[1]

    def _newton_step(self, g: DenseFunction, x: Tensor, y: Tensor) -> Tensor:
        """A step of Newton's method, or a fixed-point step where that one is surely better."""
        at = g.linearize(x)
        residual = x + at.value - y
        candidate = x - _solve(_plus_identity(at.jacobian()), residual)
        # A fixed-point step multiplies the residual by the Lipschitz constant at most.
        left = torch.linalg.vector_norm(candidate + g(candidate) - y, dim=-1, keepdim=True)
        better = left < self.lipschitz * torch.linalg.vector_norm(residual, dim=-1, keepdim=True)
        return torch.where(better, candidate, x - residual)

    def _value_and_log_det(self, g: DenseFunction, x: Tensor) -> ValueAndLogDet:
        at = g.linearize(x)
        if self.log_det == "exact":
            return at.value, torch.linalg.slogdet(_plus_identity(at.jacobian())).logabsdet
        return at.value, self._roulette(at, x)

    def _roulette(self, at: Linearized, x: Tensor) -> Tensor:
        noise = torch.randint_like(x, 0, 2) * 2 - 1
        stay = 1 - self.stop_probability
        uniform = torch.rand((), dtype=torch.float64, device="cpu").item()
        drawn = 1 + int(math.log1p(-uniform) / math.log(stay))  # geometric: P(drawn >= i) = stay ** (i - 1)
        with torch.no_grad():
            power, total, combined = noise, torch.zeros_like(x[..., 0]), torch.zeros_like(x)
            for k in range(1, self.num_terms + drawn + 1):
                weight = (-1) ** (k + 1) / stay ** max(k - self.num_terms - 1, 0)
                combined = combined + weight * power
                power = at.pull(power)
                total = total + weight / k * (power * noise).sum(-1)
        # d log det(I + J) = tr((I + J)^-1 dJ), with the inverse as a series too.
        surrogate = (at.pull(combined) * noise).sum(-1)
        return total + (surrogate - surrogate.detach())


def _plus_identity(jacobian: Tensor) -> Tensor:
    return jacobian + torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Without the look at errors, which waits for the device; these matrices are never singular."""
    return torch.linalg.solve_ex(matrix, vector.unsqueeze(-1)).result.squeeze(-1)
