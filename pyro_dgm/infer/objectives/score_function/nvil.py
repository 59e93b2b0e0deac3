"""Neural variational inference and learning: a learned baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.infer.objectives.score_function.baselines import RunningScale, mlp, observed_features, require_width
from pyro_dgm.infer.objectives.score_function.score_function import direct_terms
from pyro_dgm.ops.arguments import check_choice, check_count, check_number
from pyro_dgm.ops.random_state import forked_rng

__all__ = ["NVIL"]


@dataclass(eq=False, repr=False)
class NVIL(ParticleObjective):
    r"""Score-function gradients with a learned baseline that sees the data.

    .. math:: \nabla_\phi L = E\left[\left(\log w - c - s\, C_\psi(x)\right) \nabla_\phi \log q(z|x)\right], \qquad
              \min_\psi E\left[\left(\tfrac{\log w - c}{s} - C_\psi(x)\right)^2\right]

    :math:`c` and :math:`s` are running mean and standard deviation of the learning signal (:math:`s \ge 1`),
    :math:`C_\psi` is a small network of the observed values (averaged over plates inside a datum), trained beside the
    program by the same optimiser.  For discrete latents when only one particle can be afforded; with several,
    :class:`~pyro_dgm.infer.VIMCO` and :class:`~pyro_dgm.infer.ScoreFunction` need no training.  Reparameterised sites
    get pathwise gradients.

    With ``target="iwae"`` the bound is :math:`\hat L = \log \frac1K \sum_k w_k` and every particle has the one learning
    signal :math:`\hat L - c - s\, C_\psi(x)`: NVIL as VIMCO's paper compares itself with it.

    :param num_particles: number of particles.
    :param target: ``"elbo"``, the mean over particles, or ``"iwae"``.
    :param hidden: units of the baseline's hidden layer.
    :param decay: of the running mean and variance, in [0, 1).
    :param normalize: divide the learning signal by :math:`s`, as the paper does.  It keeps the direction of the
        score-function gradient but not its length, a step size for the guide; off by default, so that the gradient is
        the ELBO's.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for values out of range; when used, if a datum has another number of values than at first.

    Source: A. Mnih and K. Gregor (2014), arXiv:1402.0030.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.NVIL().bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    hidden: int = 64
    target: str = "elbo"
    decay: float = 0.9
    normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("hidden", self.hidden)
        check_number("decay", self.decay, within="[0, 1)")
        check_choice("target", self.target, "elbo", "iwae")
        self.multi_sample = self.averages_weights = self.target == "iwae"

    def build_learned(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> nn.Module | None:
        particles = self.dry_run(model, guide, args, kwargs)
        if not particles.score_sites:
            return None
        with forked_rng():
            return Baseline(observed_features(particles), self.hidden, self.decay)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        if self.multi_sample:
            weights = particles.log_weights.detach().softmax(0)
            total = (weights * particles.log_weights).sum()
            signal, share = bound.detach()[None], 1.0
        else:
            total, signal = direct_terms(particles).sum(), particles.log_weights.detach()
            share = 1 / self.num_particles
            total = share * total
        scores = particles.scores()
        if scores is None:
            return particles.outer_scale * total
        if not isinstance(self.learned, Baseline):
            raise ValueError(
                "NVIL was first used on a program without score-function sites and has no baseline: an objective with "
                "networks of its own belongs to one program, make a new one"
            )
        features = observed_features(particles)
        require_width(self, self.learned, features)
        running = self.learned.running
        centre, scale = running.centre, running.scale
        guess = self.learned.net(features).squeeze(-1)
        surprise = (signal - centre) / scale - guess
        running.update(signal)
        credit = surprise.detach() if self.normalize else scale * surprise.detach()
        return particles.outer_scale * (total + share * (credit * scores).sum()) - (surprise**2).mean()


class Baseline(nn.Module):
    """The network of the observed values, and the scale of what it guesses."""

    def __init__(self, features: Tensor, hidden: int, decay: float) -> None:
        super().__init__()
        self.net = mlp(features.shape[-1], hidden, features)
        self.running = RunningScale(features, decay)
