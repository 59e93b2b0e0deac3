"""Sequential Monte Carlo samplers with adaptive tempering."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.initial import new_generator
from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.mass_matrix import DiagonalMass
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.smc.ends import Ends
from pyro_dgm.infer.smc.moves import KernelPath, default_kernel
from pyro_dgm.infer.smc.resampling import next_temperature, systematic
from pyro_dgm.ops.arguments import check_count, check_counts, check_number, check_seed
from pyro_dgm.ops.log_normalizer import LogNormalizer, warn_of_low_ess
from pyro_dgm.ops.logmeanexp import normalized_ess
from pyro_dgm.ops.random_state import forked_rng, seeded
from pyro_dgm.programs.one_at_a_time import one_at_a_time

__all__ = ["SMCResult", "SMCSampler"]


@dataclass(frozen=True, repr=False)
class SMCResult(LogNormalizer):
    """A log normaliser with the population that it came from.

    :ivar betas: inverse temperatures that were chosen, rising from 0 to 1.
    :ivar resampled: after which of them the particles were resampled.
    :ivar ancestors: particles of the start that have a descendant at the end.
    """

    betas: Tensor = field(default_factory=lambda: torch.empty(0))
    resampled: Tensor = field(default_factory=lambda: torch.empty(0))
    ancestors: int = 0


class SMCSampler:
    r"""Sequential Monte Carlo sampler: a population that is reweighted, resampled and moved from a start to a target.

    .. math:: f_\beta = p_0^{1 - \beta} f_1^\beta, \qquad
              \widehat{\log Z} = \sum_k \log \sum_i W_{k-1}^i
              \left( \frac{f_1(x_{k-1}^i)}{p_0(x_{k-1}^i)} \right)^{\beta_k - \beta_{k-1}}

    Each temperature is chosen so that the conditional effective sample size falls to ``target_ess`` (bisection);
    particles are resampled (systematically) when the effective sample size of their weights is under
    ``resample_at``, and moved by a kernel whose scales and step size follow the population.  It finds its own schedule
    and gives draws of the target; where the target has modes that the start does not reach it loses them, as every
    sampler of one path does.

    Adapting to the population leaves a bias of the order of one over the number of particles; :class:`AIS` has none.
    The standard error follows the particles' lines of descent, less what rounding adds in systematic resampling: it is
    that of one run, and worth little where few ancestors are left.

    :param initial: see :class:`AIS`.
    :param target: see :class:`AIS`.
    :param kernel: of :mod:`pyro_dgm.infer.mcmc`; HMC by a quarter turn by default.
    :param num_steps: transitions at each temperature.
    :param target_ess: conditional effective sample size at which the next temperature is put, a share in (0, 1).
    :param resample_at: effective sample size of the weights under which particles are resampled, a share in (0, 1].
    :param max_temperatures: most temperatures, against paths that never arrive.
    :raises ValueError: for a share out of range; in a run, for log-densities that are NaN or plus infinity, weights
        that are all zero, or a path that does not arrive.

    Source: P. Del Moral, A. Doucet and A. Jasra (2006), "Sequential Monte Carlo samplers"; Y. Zhou, A. Johansen and
    J. Aston (2016), arXiv:1303.3123 (temperatures); A. Lee and N. Whiteley (2018), "Variance estimation in the particle
    filter", arXiv:1509.00394 (standard error, there for multinomial resampling).

    Example::

        >>> import math, torch, pyro.distributions as dist
        >>> from pyro_dgm.infer.smc import SMCSampler
        >>> initial = dist.Normal(torch.zeros(2), 3.0).to_event(1)
        >>> smc = SMCSampler(initial, lambda x: -0.5 * (x - 1).square().sum(-1))
        >>> result = smc.run(num_particles=500, seed=0)
        >>> abs(float(result) - math.log(2 * math.pi)) < 0.2
        True
        >>> result.samples.shape
        torch.Size([500, 2])
    """

    def __init__(
        self,
        initial: Any,
        target: Any,
        kernel: Kernel | None = None,
        *,
        num_steps: int = 5,
        target_ess: float = 0.9,
        resample_at: float = 0.5,
        max_temperatures: int = 1000,
    ) -> None:
        check_number("target_ess", target_ess, within="(0, 1)")
        check_number("resample_at", resample_at, within="(0, 1]")
        check_counts(num_steps=num_steps, max_temperatures=max_temperatures)
        self.ends = Ends(initial, target)
        self.kernel = default_kernel() if kernel is None else kernel
        self.num_steps, self.max_temperatures = num_steps, max_temperatures
        self.target_ess, self.resample_at = float(target_ess), float(resample_at)
        # One for all runs: its potential's graph is recorded once.
        self._path = KernelPath(self.ends.both, self.kernel, num_steps)

    @one_at_a_time
    def run(self, num_particles: int = 1000, seed: int | None = None) -> SMCResult:
        """Take a population from the start to the target.

        :param num_particles: N, at least 2.
        :param seed: of all draws; without it they follow (and advance) torch's global generator.
        :returns: :class:`SMCResult`; its ``samples``, weighted by ``log_weights``, are the target's.
        """
        check_count("num_particles", num_particles, 2)
        check_seed(seed)
        with forked_rng():
            device = next(iter(self.ends.draw(1).values())).device
        with seeded(seed, device):
            position = self.ends.unconstrain(self.ends.draw(num_particles))
            generator = new_generator(int(torch.randint(2**62, (), device="cpu").item()), device)
        return self._run(position, generator)

    def _run(self, position: Position, generator: torch.Generator) -> SMCResult:
        path = self._path
        count = next(iter(position.values())).shape[0]
        device = next(iter(position.values())).device
        log_w = torch.full((count,), 1.0 / count, dtype=torch.float64, device=device).log()
        ancestor = torch.arange(count, device=device)
        log_z, betas, resampled = torch.zeros((), dtype=torch.float64, device=device), [0.0], [False]
        rounding = torch.zeros_like(log_z)
        state: KernelState | None = None
        while betas[-1] < 1.0:
            if len(betas) > self.max_temperatures:
                raise ValueError(
                    f"after max_temperatures = {self.max_temperatures} the path is at inverse temperature "
                    f"{betas[-1]:g}: start nearer to the target, or lower target_ess"
                )
            slope = self._slope(path, position, betas[-1])
            beta = next_temperature(log_w, slope, betas[-1], self.target_ess)
            joint = log_w - (beta - betas[-1]) * slope
            total = torch.logsumexp(joint, 0)
            if float(total) == -float("inf"):
                raise ValueError("every particle's weight is zero: the target has no mass where the particles are")
            log_z, log_w = log_z + total, joint - total
            scales = _variances(position, log_w)
            again = float(normalized_ess(log_w)) < self.resample_at * count
            if again:
                rounding = rounding + _rounding(_shares(log_w, ancestor))
                uniform = torch.rand((), generator=generator, dtype=torch.float64, device=device)
                index = systematic(log_w, uniform)
                position, ancestor = {k: v[index] for k, v in position.items()}, ancestor[index]
                log_w = torch.full_like(log_w, 1.0 / count).log()
            betas.append(beta)
            resampled.append(again)
            state = self._moved(path, position, beta, scales, state, generator)
            position = state.position
        ess = normalized_ess(log_w)
        warn_of_low_ess(ess, count, "the particles' weights", stacklevel=4)
        return SMCResult(
            log_z,
            _standard_error(log_w, ancestor, rounding),
            "smc",
            "forward",
            log_z + log_w + math.log(count),
            ess,
            self.ends.values(self.ends.constrain(position)),
            0.0,
            torch.tensor(betas, dtype=torch.float64, device="cpu"),
            torch.tensor(resampled, device="cpu"),
            int(ancestor.unique().numel()),
        )

    @staticmethod
    def _slope(path: KernelPath, position: Position, beta: float) -> Tensor:
        # Any temperature gives the same slope; at 0 itself the product with an infinite potential would be NaN.
        path.potential.beta = max(beta, 1e-3)
        slope = path.potential.with_slope(position)[2].double()
        bad = slope.isnan() | (slope == -float("inf"))
        if bool(bad.any()):
            raise ValueError(
                f"log f_1 - log p_0 is NaN or plus infinite for {int(bad.sum())} of {len(bad)} particles at inverse "
                f"temperature {beta:g}: an unnormalised log-density is not finite where they are"
            )
        return slope

    def _moved(
        self,
        path: KernelPath,
        position: Position,
        beta: float,
        scales: Position,
        before: KernelState | None,
        generator: torch.Generator,
    ) -> KernelState:
        path.potential.beta = beta
        state = path.kernel.init(position, generator)
        if before is not None:
            state = replace(state, step_size=before.step_size)
        if path.adapts_mass(state):
            state = replace(state, mass=DiagonalMass(scales))
        if not path.kernel.adaptation.step_size:
            return path.move(state, beta)
        return path.tune(state, self.num_steps if before is not None else max(self.num_steps, 15))


def _variances(position: Position, log_weights: Tensor) -> Position:
    found = {}
    for k, v in position.items():
        w = log_weights.exp().to(v.dtype).reshape(-1, *(1 for _ in v.shape[1:]))
        mean = (w * v).sum(0)
        found[k] = (w * (v - mean).square()).sum(0).clamp_min(1e-10)
    return found


def _shares(log_weights: Tensor, ancestor: Tensor) -> Tensor:
    """The weight that the descendants of each particle of the start have together."""
    return torch.zeros_like(log_weights).index_add(0, ancestor, log_weights.exp())


def _rounding(shares: Tensor) -> Tensor:
    """What systematic resampling adds to the sum of the shares' squares by rounding numbers of copies, in expectation.

    Descendants of one ancestor lie together, so that their number is its share rounded up or down.
    """
    part = (len(shares) * shares).frac()
    return (part * (1.0 - part)).sum() / len(shares) ** 2


def _standard_error(log_weights: Tensor, ancestor: Tensor, rounding: Tensor) -> Tensor:
    """By lines of descent: how unevenly the ancestors share the weight at the end, less what rounding made uneven."""
    count = len(log_weights)
    variance = (_shares(log_weights, ancestor).square().sum() - rounding - 1.0 / count) * (count / (count - 1.0))
    return variance.clamp_min(0.0).sqrt()
