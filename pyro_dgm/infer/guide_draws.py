"""Independent draws from a guide with their log-densities, all at once where the program can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.potentials.sites import latent_sites
from pyro_dgm.infer.objectives.evaluation.evaluate import run_pairs
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.strategy import Pair

__all__ = ["Draws", "GuideDraws"]

Draws = tuple[dict[str, Tensor], Tensor, Tensor]


class GuideDraws:
    """Draws of latents, which are particles as those of an objective are.

    :param shapes: of each latent's value in one draw, by name.
    """

    def __init__(self, pair: Pair, shapes: Mapping[str, torch.Size]) -> None:
        # What is marked for enumeration is drawn all the same.
        structure = replace(pair.structure, model_enumerates=False, guide_enumerates=False)
        self.pair, self.shapes = replace(pair, structure=structure), shapes

    def many(self, total: int, chunk: int) -> Draws:
        """``total`` draws, at most ``chunk`` at once: values, :math:`\\log p` and :math:`\\log q` of each, in nats."""
        counts = [min(chunk, total - start) for start in range(0, total, chunk)]
        parts = [self._some(count) for count in counts]
        samples = {name: torch.cat([values[name] for values, _, _ in parts]) for name in self.shapes}
        return samples, torch.cat([p for _, p, _ in parts]), torch.cat([q for _, _, q in parts])

    def _some(self, count: int) -> Draws:
        particles = run_pairs(self.pair, count, vectorize=True)
        return self._values(particles, count), *(
            (particles.outer_scale * terms).reshape(count, -1).sum(1) for terms in (particles.log_p, particles.log_q)
        )

    def _values(self, particles: Particles, count: int) -> dict[str, Tensor]:
        rows: dict[str, list[Tensor]] = {name: [] for name in self.shapes}
        for trace, _ in particles.pairs:
            found: dict[str, Any] = latent_sites(trace)
            if changed := sorted(set(found) ^ set(self.shapes)):
                raise ValueError(
                    f"the latent sites {changed} are in some draws of the guide and not in others, so draws cannot be "
                    "put together in arrays: give the guide the same sites on every run, or condition on what decides "
                    "them"
                )
            lead = count if particles.vectorized else 1
            for name, shape in self.shapes.items():
                value = torch.as_tensor(found[name]["value"])
                if value.numel() == shape.numel():  # the same for all
                    value = value.reshape(1, *shape).expand(lead, *shape)
                rows[name].append(value.reshape(lead, *shape))
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in rows.items()}
