"""Wake-sleep: the model is trained on samples of the guide, the guide on dreams of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_dgm.infer.objectives.bounds.dreaming import DetachSamples, dream_log_q
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.part import Part
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.infer.objectives.phase import Phase
from pyro_dgm.ops.arguments import check_count

__all__ = ["WakeSleep"]


@dataclass(eq=False, repr=False)
class WakeSleep(ParticleObjective):
    r"""The wake-sleep algorithm: no gradient goes through a sample, so any site will do, discrete ones too.

    .. math:: \nabla_\theta = E_{q(z|x)}\left[\nabla_\theta \log p_\theta(x, z)\right], \qquad
              \nabla_\phi = E_{p_\theta(x', z)}\left[\nabla_\phi \log q_\phi(z|x')\right]

    Awake, the model learns from data and the guide's latents, which is the gradient of the ELBO; asleep, the guide
    learns from the model's *dreams*, which lowers :math:`KL(p(z|x') \| q(z|x'))` averaged over :math:`x' \sim p_\theta`
    and is the gradient of no bound at the data.  Simple and of low variance, and long the way to train networks of
    binary units; a guide that is trained on dreams is poor at data while the model is poor.
    :class:`~pyro_dgm.infer.ReweightedWakeSleep` mends that.  The reported bound is the ELBO.

    A dream is a run of the model with the same batch arguments in which observed sites are drawn: one dream a datum
    and step, whatever ``num_particles``.  The guide is then run on the batch with the dreamed data in the place of
    the observed: the value of each observed site must *be* an argument of model and guide (positional, by keyword, or
    in a dictionary as in ``observations={"x": x}``), the tensor itself or a view of all of it.

    One backward gives the model its gradient and the guide its own.  A parameter that both use gets the sum of the
    two.

    :param num_particles: number of the guide's samples that the wake gradient is averaged over.
    :param guide_steps: train model and guide in phases of their own, with so many steps of the guide for each of the
        model's; by default one step trains both.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: when trained, if no argument is the value of an observed site; if the guide has a site that
        the model has not (most automatic guides draw such a one); or if one is a point mass.
    :raises TypeError: when used with a ``GuideMessenger`` guide.

    Source: G. E. Hinton, P. Dayan, B. J. Frey and R. M. Neal (1995), "The wake-sleep algorithm for unsupervised neural
    networks", Science 268, 1158-1161.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> loss = pyro_dgm.infer.WakeSleep()(m.model, m.guide)(torch.zeros(7, 3))
        >>> loss.backward()
    """

    needs_replay = True
    averages_weights = False

    guide_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("guide_steps", self.guide_steps, optional=True)

    @property
    def dreams(self) -> bool:
        """Whether training draws dreams from the model, and so must know which argument holds the data."""
        return True

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        if not grad:
            return self.run(model, guide, args, kwargs)
        with DetachSamples():
            particles = self.run(model, guide, args, kwargs)
        if self.dreams:
            particles.dream_log_q = dream_log_q(particles, model, guide, args, kwargs)
        return particles

    def model_surrogate(self, particles: Particles) -> Tensor:
        """What trains the model, without the outer scale."""
        return particles.log_p.mean(0).sum()

    def guide_surrogate(self, particles: Particles) -> Tensor:
        """What trains the guide, without the outer scale."""
        return particles.dream_log_q.sum()

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        return particles.outer_scale * (self.model_surrogate(particles) + self.guide_surrogate(particles))

    def phases(self, program: Any) -> tuple[Phase, ...]:
        """One phase, or with ``guide_steps`` one for the model and one for the guide."""
        if self.guide_steps is None:
            return super().phases(program)

        def part(surrogate: Callable[[Particles], Tensor]) -> Part:
            def losses(particles: Particles) -> tuple[Tensor, Tensor]:
                scale = particles.outer_scale
                return -(scale * self.bound_of(particles).sum()), -(scale * surrogate(particles))

            return Part(self, losses)

        return (
            Phase("model", part(self.model_surrogate)),
            Phase("guide", part(self.guide_surrogate), self.guide_steps),
        )
