"""What the energy-based families have in common: a program with one observed site of unnormalised density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_dgm.models.base import Family, program_method
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.random_state import seeded

__all__ = ["EnergyFamily"]


class EnergyFamily(Family):
    """Base of the families of unnormalised density: one observed site, no latent site, no guide.

    A subclass gives :meth:`distribution`, an :class:`~pyro_dgm.distributions.UnnormalizedDistribution`.

    :param event_shape: shape of one datum.
    """

    normalized = False
    #: the law of the data at the present parameters
    distribution: Callable[[], Any]

    @program_method
    def model(self, x: Tensor) -> Tensor:
        """Observe ``x``, ``(N, *event_shape)``, at a site whose density is known up to a constant."""
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            return pyro.sample(self.obs_name, self.distribution(), obs=self.as_observed(x))

    def as_observed(self, x: Tensor) -> Tensor:
        """The batch as the site takes it."""
        return x

    @program_method
    def guide(self, x: Tensor) -> None:
        """There is no latent site."""

    def free_energy(self, x: Tensor) -> Tensor:
        r""":math:`F(x)`, with :math:`p(x) = e^{-F(x)} / Z`, nats, ``(N,)``."""
        self.check_batch(x)
        return -self.distribution().log_prob(self.as_observed(x))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *context: Any,
        num_steps: int = 1000,
        initial: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draws by Markov chains, each from a chain of its own.

        :param num_samples: how many.
        :param context: none, for these families are not conditional.
        :param num_steps: transitions; the draws are as good as the chain has mixed.
        :param initial: data to start at, ``(num_samples, *event_shape)``; by default the distribution's own starts.
        :param seed: of the draws; without it they take (and advance) torch's global generator.
        :returns: ``(num_samples, *event_shape)``.
        """
        check_count("num_samples", num_samples)
        check_count("num_steps", num_steps)
        self.check_context(num_samples, *context)
        if initial is not None:
            self.check_batch(initial)
            if len(initial) != num_samples:
                raise ValueError(f"initial must hold num_samples = {num_samples} data, got {len(initial)}")
        with seeded(seed, self._like.device):
            law = self.distribution()
            state = law.initial_state(num_samples) if initial is None else law.state_of(initial)
            return law.value_of(law.mcmc_step(state, num_steps))
