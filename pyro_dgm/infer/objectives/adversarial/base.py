"""Base of the objectives with a discriminator that is trained beside the program."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyro_dgm.infer.objectives.adversarial.discriminator import Discriminator, check_network
from pyro_dgm.infer.objectives.aggregate.aggregate import AggregateObjective
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.infer.objectives.part import Part
from pyro_dgm.infer.objectives.phase import Phase
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.random_state import forked_rng

__all__ = ["DiscriminatorObjective"]

DISCRIMINATOR_LOSS = Metric("discriminator loss", better="lower")


@dataclass(eq=False, repr=False)
class DiscriminatorObjective(AggregateObjective):
    """A subclass says what the network sees and what its loss is; the program sees the network with weights held fixed.

    :param hidden: units of the discriminator's hidden layers.
    :param network: makes the discriminator from its number of inputs, a module with one output; instead of ``hidden``.
    :param discriminator_steps: train the discriminator in a phase of its own, with so many steps for each of the
        program's; by default one step trains both.
    """

    hidden: Sequence[int] = (128, 128)
    network: Callable[[int], nn.Module] | None = None
    discriminator_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hidden = check_network(self.hidden, self.network)
        check_count("discriminator_steps", self.discriminator_steps, optional=True)

    @abstractmethod
    def rows(self, particles: Particles) -> Tensor:
        """The discriminator's inputs at draws of the guide, ``(K, N, features)``."""

    @abstractmethod
    def discriminator_loss(self, particles: Particles) -> Tensor:
        """The discriminator's loss of a batch, nats, differentiable by its weights alone."""

    def program_surrogate(self, particles: Particles, bound: Tensor) -> Tensor:
        """The surrogate of the program's parameters, without the outer scale."""
        return bound.sum()

    def build_learned(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> nn.Module | None:
        particles = self.dry_run(model, guide, args, kwargs)
        self.require(particles)
        rows = self.rows(particles)
        with forked_rng():
            return Discriminator(rows.shape[-1], self.hidden, self.network, rows)

    def discriminator(self, rows: Tensor) -> Discriminator:
        """The network, for inputs of these sizes."""
        assert isinstance(self.learned, Discriminator)
        self.learned.require(self, rows)
        return self.learned

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        return particles.outer_scale * (self.program_surrogate(particles, bound) - self.discriminator_loss(particles))

    def phases(self, program: Any) -> tuple[Phase, ...]:
        """One phase, or with ``discriminator_steps`` one for the program and one for the discriminator."""
        if self.discriminator_steps is None:
            return super().phases(program)

        def of_program(particles: Particles) -> tuple[Tensor, Tensor]:
            bound, scale = self.bound_of(particles), particles.outer_scale
            return -(scale * bound.sum()), -(scale * self.program_surrogate(particles, bound))

        def of_discriminator(particles: Particles) -> tuple[Tensor, Tensor]:
            loss = particles.outer_scale * self.discriminator_loss(particles)
            return loss, loss

        return (
            Phase("objective", Part(self, of_discriminator, DISCRIMINATOR_LOSS), self.discriminator_steps),
            Phase("program", Part(self, of_program)),
        )
