"""What the Boltzmann machines have in common: visible units, and their log Z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.distributions.visible_units import VisibleUnits
from pyro_dgm.models.energy_family import EnergyFamily
from pyro_dgm.ops.annealing import annealing_schedule
from pyro_dgm.ops.arguments import check_choice, check_count
from pyro_dgm.ops.log_normalizer import LogNormalizer
from pyro_dgm.ops.random_state import seeded

__all__ = ["BoltzmannFamily"]

#: Gibbs sweeps from which base rates are read where no data are given
BASE_RATE_STEPS = 200


class BoltzmannFamily(EnergyFamily):
    """Base of the Boltzmann machines: one observed site, no latent site, no guide.

    A subclass gives :meth:`distribution` and :attr:`units`.  The distribution is an
    :class:`~pyro_dgm.distributions.UnnormalizedDistribution` with ``can_enumerate``, ``exact_log_normalizer()``,
    ``exact_sample(num_samples)`` and ``anneal(base_bias, betas, num_chains, target_samples)``.

    :param event_shape: shape of one datum.
    """

    #: kind of the visible units
    units: VisibleUnits

    def check_values(self, x: Tensor) -> None:
        """Refuse values that the visible units cannot take."""
        super().check_values(x)
        self.units.check(x, "x")

    def base_bias(self, mean: Tensor) -> Tensor:
        """Bias of independent visible units with these means."""
        return self.units.base_bias(self.units.flat(mean))

    @torch.no_grad()
    def log_normalizer(
        self,
        method: str = "ais",
        num_temperatures: int = 10_000,
        num_chains: int = 100,
        *,
        schedule: str | Callable[[Tensor], Tensor] | Tensor = "rbm",
        direction: str = "forward",
        data: Tensor | None = None,
        target_samples: Tensor | None = None,
        seed: int | None = None,
    ) -> LogNormalizer:
        r""":math:`\log Z` in nats.

        ``"exact"`` sums over at most :math:`2^{20}` states.  ``"ais"`` anneals from independent visible units, whose
        means are those of ``data`` or, without, of a short Gibbs run.  From a start far from the target the estimate
        can be nats off although the weights agree with each other: a low effective sample size shows it, a standard
        error may not.

        The forward estimate is a lower bound in expectation.  The reverse one is an upper bound if its chains start at
        exact draws of the model.  A small model is enumerated for them; of a large one pass the best draws that you
        have as ``target_samples``: the bound is as good as they are.

        :param method: ``"ais"`` or ``"exact"``.
        :param num_temperatures: inverse temperatures, including 0 and 1.
        :param num_chains: independent chains.
        :param schedule: see :func:`pyro_dgm.ops.annealing_schedule`.
        :param direction: ``"forward"`` or ``"reverse"``.
        :param data: training data, ``(N, *event_shape)``, whose means make the base rates.
        :param target_samples: where reverse chains start, ``(num_chains, *event_shape)``.
        :param seed: of the draws; without it they take (and advance) torch's global generator.
        :returns: :class:`pyro_dgm.ops.LogNormalizer`; ``float()`` of it is the number.
        :raises ValueError: for an unknown method or direction, fewer than 2 temperatures or chains, a model too large
            to enumerate, or energies that are not finite.
        """
        law = self.distribution()
        if method == "exact":
            return LogNormalizer.exact(_finite(law.exact_log_normalizer(), self))
        if method != "ais":
            raise ValueError(f"method must be 'ais' or 'exact', got {method!r}")
        check_choice("direction", direction, "forward", "reverse")
        check_count("num_chains", num_chains, 2)
        betas = annealing_schedule(schedule, num_temperatures)
        _check_parameters(self)
        with seeded(seed, self._like.device):
            if data is not None:
                self.check_batch(data)
                mean = self.as_observed(data).mean(0)
            else:
                mean = self._own_means(law, num_chains)
            start = None
            if direction == "reverse":
                start = self._target_samples(law, num_chains, target_samples)
            return law.anneal(self.base_bias(mean), betas, num_chains, start)

    def _target_samples(self, law: Any, num_chains: int, given: Tensor | None) -> Tensor:
        if given is not None:
            self.check_batch(given)
            return law.state_of(self.as_observed(given))
        if not law.can_enumerate:
            raise ValueError(
                "the reverse direction starts at draws of the model, which is too large for exact ones: pass the best "
                "there are as target_samples (sample(num_chains, num_steps=...) from data, say)"
            )
        return law.exact_sample(num_chains)

    def _own_means(self, law: Any, num_chains: int) -> Tensor:
        state = law.mcmc_step(law.initial_state(num_chains), BASE_RATE_STEPS // 2)
        total = 0.0
        for _ in range(BASE_RATE_STEPS // 2):
            state = law.mcmc_step(state)
            total = total + law.value_of(state).mean(0)
        return total / (BASE_RATE_STEPS // 2)  # type: ignore[return-value]

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, log_normalizer: float | Tensor | LogNormalizer | None = None) -> Tensor:
        r""":math:`\log p(x_n) = -F(x_n) - \log Z` in nats, ``(N,)``, float64.

        :param x: ``(N, *event_shape)``.
        :param log_normalizer: :math:`\log Z`; by default it is enumerated.
        :raises ValueError: without ``log_normalizer`` where there are too many states to enumerate.
        """
        log_z = self.log_normalizer("exact") if log_normalizer is None else log_normalizer
        return -self.free_energy(x).double() - float(log_z)

    log_prob = log_marginal = log_likelihood


def _check_parameters(module: torch.nn.Module) -> None:
    bad = [name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        raise ValueError(f"the energy is not finite: {', '.join(bad)} of {type(module).__name__} hold NaN or infinity")


def _finite(value: Tensor, module: torch.nn.Module) -> Tensor:
    if not bool(torch.isfinite(value)):
        _check_parameters(module)
        raise ValueError(f"log Z is {float(value)}: energies overflow")
    return value
