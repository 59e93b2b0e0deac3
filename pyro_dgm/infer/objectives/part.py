"""One loss of an objective that has several, for phases with optimisers of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.programs import emit_param_messages, param_messages

__all__ = ["Part"]


class Part(Objective):
    """A loss made of another objective's evaluation, which shares its networks.

    :param whole: the objective.
    :param losses: the loss and the surrogate loss of an evaluation, as :meth:`estimate` gives them.
    :param metric: what the loss is; that of ``whole`` if not given.
    """

    def __init__(
        self,
        whole: ParticleObjective,
        losses: Callable[[Particles], tuple[Tensor, Tensor]],
        metric: Metric | None = None,
    ) -> None:
        super().__init__(num_particles=whole.num_particles)
        self.whole, self.losses, self.metric = whole, losses, metric or whole.metric

    @property
    def learned(self) -> torch.nn.Module | None:  # type: ignore[override]
        return self.whole.learned

    def prepare(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> None:
        self.whole.prepare(model, guide, args, kwargs)

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        with param_messages(bool(_PYRO_STACK)):
            if self.learned is not None:
                emit_param_messages(self.learned)
            particles = self.whole.particles(model, guide, args, kwargs, grad=True)
        loss, surrogate = self.losses(particles)
        return loss, surrogate if grad else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.whole!r})"
