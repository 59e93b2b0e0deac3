"""Annealed importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.initial import new_generator
from pyro_dgm.infer.mcmc.kernels.base import Kernel
from pyro_dgm.infer.smc.ends import Ends
from pyro_dgm.infer.smc.moves import KernelPath, check_kernel, default_kernel
from pyro_dgm.ops.annealing import anneal, annealing_schedule
from pyro_dgm.ops.arguments import check_count, check_seed
from pyro_dgm.ops.log_normalizer import LogNormalizer
from pyro_dgm.ops.random_state import forked_rng, seeded
from pyro_dgm.programs.one_at_a_time import one_at_a_time

__all__ = ["AIS"]


class AIS:
    r"""Annealed importance sampling: the normaliser of a density, by chains that walk to it from a known one.

    .. math:: \log f_\beta = (1 - \beta) \log p_0 + \beta \log f_1, \qquad
              \log w = \sum_{k=1}^{K} (\beta_k - \beta_{k-1}) \left( \log f_1(x_{k-1}) - \log p_0(x_{k-1}) \right)

    :math:`\mathbb{E}\, w = Z_1`, so :math:`\log \bar w` is a lower bound on :math:`\log Z_1` in expectation, close
    where the weights agree.  Chains that go the other way (:meth:`reverse`) from exact draws of the target give an
    upper bound.

    Check the estimate's ``ess`` before the standard error. Chains that all miss a part of the target agree with each
    other: the error is small, and the estimate too low. Below 10 % a warning says so.

    Transitions are a kernel's, in unconstrained coordinates.  A pilot run of as many chains along 30 of the
    temperatures finds step sizes and scales first, which then are fixed, so that the weights stay unbiased.

    :param initial: the normalised start :math:`p_0`: anything with ``sample`` and ``log_prob`` (and ``support``, where
        it is not all reals), without batch dimensions; or a dict of them by name.
    :param target: :math:`\log f_1`: a function from values ``(chains, *event_shape)`` (or a dict of them) to
        ``(chains,)``; or a distribution.
    :param kernel: of :mod:`pyro_dgm.infer.mcmc`, reversible for :meth:`reverse`; HMC by a quarter turn by default.
    :param transition: instead of a kernel, a function from ``(x, beta)`` to ``x`` that leaves :math:`f_\beta` invariant
        (a Gibbs sweep, say), with random numbers of torch's global generator.
    :param num_temperatures: number of inverse temperatures, including 0 and 1; at least 2.
    :param schedule: see :func:`pyro_dgm.ops.annealing_schedule`.
    :param num_steps: transitions at each temperature.
    :param tune: whether to have the pilot run; without it the kernel keeps the step size that it was made with.
    :raises ValueError: for fewer than 2 temperatures, or a kernel that a path cannot be walked with; in a run, for
        log-densities that are NaN or plus infinity.
    :raises TypeError: for objects of another kind than wanted.

    Source: R. M. Neal (2001), "Annealed importance sampling", arXiv:physics/9803008; C. Jarzynski (1997),
    "Nonequilibrium equality for free energy differences", arXiv:cond-mat/9610209.

    Example::

        >>> import math, torch, pyro.distributions as dist
        >>> from pyro_dgm.infer.smc import AIS
        >>> initial = dist.Normal(torch.zeros(2), 3.0).to_event(1)
        >>> ais = AIS(initial, lambda x: -0.5 * (x - 1).square().sum(-1), num_temperatures=100)
        >>> estimate = ais.forward(num_chains=100, seed=0)
        >>> abs(float(estimate) - math.log(2 * math.pi)) < 4 * float(estimate.standard_error)
        True
    """

    def __init__(
        self,
        initial: Any,
        target: Any,
        kernel: Kernel | None = None,
        *,
        transition: Callable[[Any, float], Any] | None = None,
        num_temperatures: int = 1000,
        schedule: str | Callable[[Tensor], Tensor] | Tensor = "sigmoidal",
        num_steps: int = 1,
        tune: bool = True,
    ) -> None:
        self.ends = Ends(initial, target)
        if kernel is not None and transition is not None:
            raise ValueError("give kernel or transition, not both")
        if transition is not None and not callable(transition):
            raise TypeError(f"transition must be a function of x and beta, got {type(transition).__name__}")
        check_count("num_steps", num_steps)
        self.kernel = default_kernel() if kernel is None else kernel
        check_kernel(self.kernel)
        self.transition, self.num_steps, self.tune = transition, num_steps, bool(tune)
        self.betas = annealing_schedule(schedule, num_temperatures)
        self._path: KernelPath | None = None

    @one_at_a_time
    def forward(self, num_chains: int = 100, seed: int | None = None) -> LogNormalizer:
        """From draws of the start to the target.

        :param num_chains: independent chains, all at once; at least 2.
        :param seed: of all draws; without it they follow (and advance) torch's global generator.
        :returns: :class:`~pyro_dgm.ops.LogNormalizer`; its ``samples``, weighted by ``log_weights``, are the target's.
        """
        _check_chains(num_chains)
        return self._run(num_chains, None, seed)

    @one_at_a_time
    def reverse(self, samples: Any, seed: int | None = None) -> LogNormalizer:
        r"""From draws of the target to the start: an upper bound on :math:`\log Z_1` in expectation.

        :param samples: exact, independent draws of the target, ``(chains, *event_shape)`` or a dict of them.  From
            anything else the estimate is no bound.
        :param seed: as in :meth:`forward`.
        """
        values = self.ends.named(samples)
        count = next(iter(values.values())).shape[0]
        _check_chains(count)
        return self._run(count, values, seed)

    def _run(self, num_chains: int, target_values: Any, seed: int | None) -> LogNormalizer:
        check_seed(seed)
        betas = self.betas if target_values is None else self.betas.flip(0)
        direction = "forward" if target_values is None else "reverse"
        device = self._device(target_values)
        with seeded(seed, device):
            values = self.ends.draw(num_chains) if target_values is None else target_values
            if self.transition is not None:
                values, log_weights = self._by_transition(values, betas)
            else:
                generator = new_generator(int(torch.randint(2**62, (), device="cpu").item()), device)
                path = self._tuned(num_chains, generator)
                position, log_weights = path.anneal(self.ends.unconstrain(values), betas, generator)
                values = self.ends.constrain(position)
        return LogNormalizer.of_weights(log_weights, 0.0, direction, self.ends.values(values), stacklevel=4)

    def _tuned(self, num_chains: int, generator: torch.Generator) -> KernelPath:
        if self._path is None:
            # Kept for the reverse run: one path, one kernel at each of its temperatures.
            path = KernelPath(self.ends.both, self.kernel, self.num_steps)
            if self.tune:
                path.pilot(self.ends.unconstrain(self.ends.draw(num_chains)), self.betas, generator)
            self._path = path
        return self._path

    @torch.no_grad()
    def _by_transition(self, values: Any, betas: Tensor) -> tuple[Any, Tensor]:
        def reweight(x: Any, previous: float, beta: float) -> tuple[Any, Tensor]:
            return x, (beta - previous) * (self.ends.log_target(x) - self.ends.log_initial(x)).double()

        def move(x: Any, beta: float) -> Any:
            for _ in range(self.num_steps):
                assert self.transition is not None
                x = self.ends.named(self.transition(self.ends.values(x), beta))
            return x

        return anneal(values, betas, reweight, move)

    def _device(self, values: Any) -> torch.device:
        if values is None:
            with forked_rng():
                values = self.ends.draw(1)
        return next(iter(values.values())).device


def _check_chains(count: Any) -> None:
    check_count("num_chains", count, 2, why="an error needs two")
