"""A program with the batch that it is analysed on: checked once, and evaluated in one way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyro_dgm.infer.mcmc.initial import device_of
from pyro_dgm.infer.objectives.evaluation.evaluate import run_pairs
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.ops.arguments import check_seed
from pyro_dgm.ops.random_state import seeded
from pyro_dgm.programs import as_program
from pyro_dgm.programs.batch import checked_batch
from pyro_dgm.programs.parameters import evaluation_mode
from pyro_dgm.programs.structure import Structure, probe

__all__ = ["Prepared"]


@dataclass(frozen=True)
class Prepared:
    """A program, its arguments and the seed of its draws.

    :ivar structure: known inside :meth:`evaluating`, if it was asked for.
    """

    program: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int | None = None
    structure: Structure | None = None

    @classmethod
    def of(cls, program: Any, x: Any, seed: int | None = None, *, gradients: bool = False) -> Prepared:
        """Check all of them, as every function of this room does."""
        program = as_program(program)
        check_seed(seed)
        return cls(program, *checked_batch(program, x, gradients=gradients), seed)

    @property
    def device(self) -> torch.device:
        """Where the program runs."""
        return device_of(self.program.model, self.args, self.kwargs)

    @contextmanager
    def evaluating(self, probed: bool = True) -> Iterator[Prepared]:
        """Without gradients, in ``eval()`` mode, with the seed, and with the structure looked up."""
        program = self.program
        with torch.no_grad(), evaluation_mode(program.model, program.guide), seeded(self.seed, self.device):
            found = probe(program.model, program.guide, self.args, self.kwargs) if probed else None
            yield replace(self, structure=found)

    @property
    def pair(self) -> Pair:
        """Model and guide with the batch and their structure."""
        assert self.structure is not None
        return Pair(self.program.model, self.program.guide, self.args, self.kwargs, self.structure)

    def particles(self, num_particles: int = 1, vectorize: bool = False) -> Particles:
        """Draws of the guide with all log-densities."""
        return run_pairs(self.pair, num_particles, vectorize)
