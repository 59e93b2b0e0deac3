"""Marginal log-likelihoods by annealing, each datum with chains of its own, and brackets around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.initial import new_generator
from pyro_dgm.infer.mcmc.kernels.base import Kernel
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.smc.moves import KernelPath, default_kernel
from pyro_dgm.infer.smc.program import ProgramEnds, simulate
from pyro_dgm.ops.annealing import annealing_schedule
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.log_normalizer import LogNormalizer

__all__ = ["Annealing", "LogLikelihoodBracket", "annealed", "bracketed"]


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed likelihoods, checked.

    :ivar num_chains: chains for each datum.
    :ivar initial: ``"prior"`` or ``"guide"``.
    :ivar chunk_size: most chains times data at once.
    """

    num_chains: int = 32
    num_temperatures: int = 500
    schedule: str | Callable[[Tensor], Tensor] | Tensor = "sigmoidal"
    initial: str = "prior"
    kernel: Kernel = field(default_factory=default_kernel)
    num_steps: int = 1
    chunk_size: int | None = 20_000

    def __post_init__(self) -> None:
        check_count("num_chains", self.num_chains, 2)
        annealing_schedule(self.schedule, self.num_temperatures)

    @property
    def betas(self) -> Tensor:
        """Inverse temperatures."""
        return annealing_schedule(self.schedule, self.num_temperatures)

    def groups(self, data: int) -> list[int]:
        """Numbers of chains that run together, so that no more than ``chunk_size`` rows are evaluated at once."""
        most = self.num_chains if self.chunk_size is None else max(self.chunk_size // max(data, 1), 2)
        count = -(-self.num_chains // most)
        return [self.num_chains // count + (i < self.num_chains % count) for i in range(count)]


@dataclass(frozen=True)
class LogLikelihoodBracket:
    r"""Stochastic bounds on the marginal log-likelihoods of data *simulated from the model*, nats.

    :ivar lower: by forward annealing; a lower bound in expectation.
    :ivar upper: by reverse annealing from the latents that each datum was simulated with; an upper bound in
        expectation.
    :ivar data: the simulated data by observed site.  The data that were passed in gave their shapes alone: how wide the
        bracket is says how good annealing with these settings is on data like the model's own.
    """

    lower: Any
    upper: Any
    data: dict[str, Tensor]

    @property
    def gap(self) -> float:
        """Mean of upper minus lower, nats per datum: a bound, in expectation, on the bias of either."""
        return float((self.upper.values - self.lower.values).mean())

    @property
    def gap_standard_error(self) -> float:
        """Standard error of :attr:`gap` over data."""
        gaps = (self.upper.values - self.lower.values).flatten()
        return float(gaps.std()) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan

    def __repr__(self) -> str:
        return (
            f"LogLikelihoodBracket({self.lower.mean:.4f} to {self.upper.mean:.4f} nats per datum over "
            f"{self.lower.values.numel()} data simulated from the model; gap {self.gap:.4f} +- "
            f"{self.gap_standard_error:.2g})"
        )


def annealed(program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], settings: Annealing) -> LogNormalizer:
    """Log-likelihoods of data, annealed from prior or guide; the seed comes from the global generator."""
    ends = ProgramEnds(program, args, kwargs, settings.initial)
    groups = settings.groups(ends.shape.numel())
    starts = [ends.draw(n) for n in groups]
    path, generator = _path(ends, settings, starts[0])
    return _run(ends, path, starts, settings.betas, generator, "forward")


def bracketed(
    program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], settings: Annealing
) -> tuple[LogNormalizer, LogNormalizer, dict[str, Tensor]]:
    """Lower and upper bounds on data simulated from the model, and the data."""
    trace, data, simulated, args, kwargs = simulate(program, args, kwargs)
    ends = ProgramEnds(simulated, args, kwargs, settings.initial)
    groups = settings.groups(ends.shape.numel())
    starts = [ends.draw(n) for n in groups]
    path, generator = _path(ends, settings, starts[0])
    lower = _run(ends, path, starts, settings.betas, generator, "forward")
    # The latents that a datum was simulated with are an exact draw of its posterior.
    exact = [ends.repeated(trace, n) for n in groups]
    upper = _run(ends, path, exact, settings.betas.flip(0), generator, "reverse")
    return lower, upper, data


def _path(ends: ProgramEnds, settings: Annealing, start: Position) -> tuple[KernelPath, torch.Generator]:
    device = next(iter(start.values())).device
    generator = new_generator(int(torch.randint(2**62, (), device="cpu").item()), device)
    path = KernelPath(ends.both, settings.kernel, settings.num_steps, ends.shape)
    path.pilot(start, settings.betas, generator)
    return path, generator


def _run(
    ends: ProgramEnds,
    path: KernelPath,
    starts: list[Position],
    betas: Tensor,
    generator: torch.Generator,
    direction: str,
) -> LogNormalizer:
    parts = [path.anneal(start, betas, generator)[1].reshape(-1, *ends.shape) for start in starts]
    return LogNormalizer.of_weights(torch.cat(parts), 0.0, direction, None, stacklevel=5)
