"""Different objectives for model and guide: the model sees copies of the samples, cut from the guide.

The gradient of :math:`\\log p_\\theta(x, z_\\phi)` then stops at the model's parameters and at the copies; what arrives
at the copies for weights of another objective is sent on to the guide.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_dgm.infer.objectives.bounds.pathwise import with_values
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.programs.structure import sample_sites

__all__ = ["run_split", "through_samples"]


class _Cut(torch.autograd.Function):
    """Identity that lets no gradient through; that of its result can be asked for."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


def run_split(objective: ParticleObjective, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particles:
    """Run the pair with copies of the guide's pathwise samples in the model; they are kept in ``holders``."""
    holders: list[tuple[int, list[Tensor], Any]] = []

    def rewrite(trace: poutine.Trace, k: int) -> poutine.Trace:
        if k == 0:
            holders.clear()
        latents = sample_sites(trace)

        def copy(name: str, site: Any) -> Any:
            if name not in latents or not site["value"].requires_grad:
                return site["value"]
            cut = _Cut.apply(site["value"])
            holders.append((k, [cut], site))
            return cut

        return with_values(trace, copy)

    particles = objective.run(model, guide, args, kwargs, rewrite)
    particles.holders = holders
    return particles


def through_samples(particles: Particles, weights: Tensor) -> Tensor:
    """A scalar whose gradient is that of ``(weights * log_p).sum()`` through the samples, and only through them.

    :param weights: constants, ``(K, *shape)``.
    """
    copies = [holder[0] for _, holder, _ in particles.holders]
    values = [site["value"] for _, _, site in particles.holders]
    total = (weights * particles.log_p).sum()
    if not copies or not total.requires_grad:
        return particles.log_q.new_zeros(())
    slopes = torch.autograd.grad(total, copies, retain_graph=True, allow_unused=True)
    parts = [(slope * value).sum() for slope, value in zip(slopes, values, strict=True) if slope is not None]
    return sum(parts[1:], parts[0]) if parts else particles.log_q.new_zeros(())
