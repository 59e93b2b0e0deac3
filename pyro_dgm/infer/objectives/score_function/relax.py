"""RELAX: a control variate learned from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.score_function.baselines import (
    RunningScale,
    mlp,
    observed_features,
    per_datum,
    require_width,
)
from pyro_dgm.infer.objectives.score_function.control_variate import ControlVariate
from pyro_dgm.infer.objectives.score_function.logits import Hidden
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs.structure import sample_sites

__all__ = ["RELAX"]


@dataclass(eq=False, repr=False)
class RELAX(ControlVariate):
    r"""The ELBO with a learned network as control variate, for Bernoulli and categorical guide sites.

    .. math:: \nabla_t L = E\left[(\log w(b) - c_\psi(\tilde z)) \nabla_t \log q(b) + \nabla_t c_\psi(z)
              - \nabla_t c_\psi(\tilde z)\right], \qquad \min_\psi E\left[\|\hat g\|^2\right]

    by the logits :math:`t`, with :math:`z` the logistic (Gumbel) variable of which :math:`b` is the discrete part and
    :math:`\tilde z` another draw of it given :math:`b`.  Unbiased for any :math:`c_\psi`, here a network of
    :math:`z`, its relaxed value and the observations, trained by the program's optimiser on the gradient's variance.
    The model is evaluated at discrete values only.  Reparameterised sites get pathwise gradients.

    :param num_particles: number of particles averaged over.
    :param hidden: units of the network's hidden layer.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: when used: for a discrete guide site of another kind, for discrete guide sites that depend on
        each other, or for a datum of another size than at first.

    Source: W. Grathwohl, D. Choi, Y. Wu, G. Roeder and D. Duvenaud (2018), arXiv:1711.00123.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.RELAX().bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    hidden: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("hidden", self.hidden)

    def build_learned(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> nn.Module | None:
        names = self.look_at_sites(model, guide, args, kwargs)
        if not names:
            return None
        particles = self.dry_run(model, guide, args, kwargs)
        sites = sample_sites(particles.pairs[0][1])
        hidden = [Hidden(self, sites[n]) for n in names]
        features = _features(particles, hidden, [h.logits for h in hidden])
        with forked_rng():
            return _Network(features, self.hidden)

    def control(self, particles: Particles, pair: int, hidden: list[Hidden], values: list[Tensor]) -> Tensor:
        assert isinstance(self.learned, _Network)
        features = _features(particles, hidden, values)
        require_width(self, self.learned, features)
        running = self.learned.running
        return running.centre + running.scale * self.learned.net(features).squeeze(-1)

    def finish(self, particles: Particles) -> None:
        assert isinstance(self.learned, _Network)
        self.learned.running.update(particles.log_weights.detach())


class _Network(nn.Module):
    def __init__(self, features: Tensor, hidden: int) -> None:
        super().__init__()
        self.net = mlp(features.shape[-1], hidden, features)
        self.running = RunningScale(features, 0.9)


def _features(particles: Particles, hidden: list[Hidden], values: list[Tensor]) -> Tensor:
    """Hidden variables, their relaxed values and the observations, ``(K or 1, *shape, features)``."""
    parts = []
    for site, z in zip(hidden, values, strict=True):
        for value in (z, site.soft(z, z.new_ones(()))):
            listed = per_datum(particles, value, site.event_dim, particles.vectorized, pool=False)
            parts.append(listed if particles.vectorized else listed.unsqueeze(0))
    lead = max(part.shape[0] for part in parts)
    parts.append(observed_features(particles).unsqueeze(0))
    return torch.cat([part.expand(lead, *part.shape[1:]) for part in parts], -1)
