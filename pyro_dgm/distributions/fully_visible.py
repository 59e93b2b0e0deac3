"""The law of a fully visible Boltzmann machine, or Ising model with units in {0, 1}."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import softplus

from pyro_dgm.distributions.unnormalized import UnnormalizedDistribution
from pyro_dgm.ops.annealing import anneal
from pyro_dgm.ops.binary import MAX_ENUMERATED, draw_binary, draw_enumerated, log_sum_over_binary
from pyro_dgm.ops.log_normalizer import LogNormalizer

__all__ = ["FullyVisibleDistribution"]


class FullyVisibleDistribution(UnnormalizedDistribution):
    r"""Binary units that are coupled in pairs: :math:`p(v) \propto \exp(b^\top v + \tfrac12 v^\top W v)`.

    ``log_prob`` is the exponent, without :math:`\log Z`.  Chains are Gibbs sweeps over units, in a random order each
    time, which makes a sweep reversible.

    :param weight: :math:`W`, symmetric with a zero diagonal, ``(units, units)``.
    :param bias: :math:`b`, ``(units,)``.
    :param num_steps: sweeps of ``sample``.
    :raises ValueError: for shapes that do not fit.

    Source: D. Ackley, G. Hinton and T. Sejnowski (1985), "A learning algorithm for Boltzmann machines".

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import FullyVisibleDistribution
        >>> pair = FullyVisibleDistribution(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(2))
        >>> round(float(pair.exact_log_normalizer()), 4)  # log(3 + e)
        1.7437
    """

    def __init__(self, weight: Tensor, bias: Tensor, num_steps: int = 1000, validate_args: bool | None = None) -> None:
        if weight.dim() != 2 or weight.shape[0] != weight.shape[1] or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"weight must be square and bias fit it, got shapes {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        self.weight, self.bias = weight, bias
        super().__init__(torch.Size(), bias.shape, num_steps, validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.boolean, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = value @ self.bias + 0.5 * ((value @ self.weight) * value).sum(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def unit_logits(self, value: Tensor) -> Tensor:
        """Log-odds of each unit given all others, ``(..., units)``."""
        return self.bias + value @ self.weight

    def log_pseudolikelihood(self, value: Tensor) -> Tensor:
        r""":math:`\sum_i \log p(v_i \mid v_{-i})`, nats, which needs no :math:`\log Z`; J. Besag (1975)."""
        logits = self.unit_logits(value)
        return (value * logits - softplus(logits)).sum(-1)

    @torch.no_grad()
    def initial_state(self, num_chains: int) -> Tensor:
        """Units drawn from their biases alone."""
        return draw_binary(self.bias.expand(num_chains, -1))

    @torch.no_grad()
    def mcmc_step(self, state: Tensor, num_steps: int = 1) -> Tensor:
        """Gibbs sweeps over the units, one after another in a random order."""
        return self._sweeps(state, num_steps, self.bias, 1.0)

    def _sweeps(self, state: Tensor, num_steps: int, bias: Tensor, beta: float) -> Tensor:
        state, weight = state.clone(), beta * self.weight
        for _ in range(num_steps):
            uniform = torch.rand_like(state)
            for i in torch.randperm(state.shape[-1], device="cpu").tolist():
                p = (bias[i] + state @ weight[i]).sigmoid()
                state[:, i] = (uniform[:, i] < p).to(state.dtype)
        return state

    @property
    def can_enumerate(self) -> bool:
        """Whether there are at most 20 units."""
        return self.bias.shape[0] <= MAX_ENUMERATED

    @torch.no_grad()
    def exact_log_normalizer(self) -> Tensor:
        """:math:`\\log Z` by summing over all states, float64.

        :raises ValueError: for more than 20 units.
        """
        self._check_size()
        return log_sum_over_binary(self._double(), self.bias.shape[0], self.bias.double())

    @torch.no_grad()
    def exact_sample(self, num_samples: int) -> Tensor:
        """Exact, independent draws.

        :raises ValueError: for more than 20 units.
        """
        self._check_size()
        return draw_enumerated(self._double(), self.bias.shape[0], num_samples, self.bias.double()).to(self.bias.dtype)

    def _double(self) -> Any:
        return FullyVisibleDistribution(self.weight.double(), self.bias.double(), validate_args=False).log_prob

    def _check_size(self) -> None:
        if not self.can_enumerate:
            raise ValueError(f"enumeration needs at most {MAX_ENUMERATED} units, got {self.bias.shape[0]}")

    @torch.no_grad()
    def anneal(
        self, base_bias: Tensor, betas: Tensor, num_chains: int, target_samples: Tensor | None = None
    ) -> LogNormalizer:
        r"""Annealed importance sampling from independent units of bias :math:`a`, one sweep at each temperature.

        :param base_bias: :math:`a`.
        :param betas: rising from 0 to 1.
        :param num_chains: independent chains.
        :param target_samples: exact draws, for the reverse direction.
        """
        base = base_bias.to(self.bias)

        def reweight(v: Tensor, previous: float, beta: float) -> tuple[Tensor, Tensor]:
            return v, (beta - previous) * (self.expand(torch.Size()).log_prob(v) - v @ base).double()

        def move(v: Tensor, beta: float) -> Tensor:
            return self._sweeps(v, 1, torch.lerp(base, self.bias, beta), beta)

        start = softplus(base.double()).sum()
        if target_samples is None:
            first, direction = draw_binary(base.expand(num_chains, -1)), "forward"
        else:
            first, direction, betas = target_samples, "reverse", betas.flip(0)
        last, log_weights = anneal(first, betas, reweight, move)
        return LogNormalizer.of_weights(log_weights, start, direction, last, stacklevel=4)
