"""Reweighted wake-sleep with importance weights of each datum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_dgm.infer.objectives.bounds.wake_sleep import WakeSleep
from pyro_dgm.infer.objectives.evaluation.particles import Particles

__all__ = ["ReweightedWakeSleep"]


@dataclass(eq=False, repr=False)
class ReweightedWakeSleep(WakeSleep):
    r"""Reweighted wake-sleep: K weighted samples train the model, and samples or dreams the guide.

    .. math:: \nabla_\theta = E\Bigl[\sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k)\Bigr], \qquad
              \nabla_\phi = \lambda E\Bigl[\sum_k \tilde w_k \nabla_\phi \log q_\phi(z_k|x)\Bigr]
              + (1 - \lambda) E_{p_\theta(x', z)}\left[\nabla_\phi \log q_\phi(z|x')\right]

    with :math:`z_k \sim q(z|x)` held fixed and :math:`\tilde w_k = w_k / \sum_j w_j`, :math:`w_k = p(x, z_k) /
    q(z_k|x)`.  The model's gradient is that of the IWAE bound, which is the bound reported.  The guide's wake part
    (:math:`\lambda = 1`) lowers :math:`KL(p(z|x) \| q(z|x))` at the data, up to a bias of order 1/K; its sleep part is
    that of :class:`~pyro_dgm.infer.WakeSleep`, without bias but at dreams.  Neither needs a reparameterised site or a
    control variate, and the guide's gradient gets better with K, where IWAE's gets worse: the choice for discrete
    latents with several particles, and for guides that must cover the posterior.  With K = 1 the wake part of the
    guide has mean zero: use at least 2.

    The weights are those of each datum (Pyro's ``ReweightedWakeSleep`` has one weight for the whole batch, whose
    effective sample size falls to 1 as the batch grows), and subsampling scale stays outside the logarithm.

    One backward gives the model its gradient and the guide its own.  A parameter that both use gets the sum of the
    two.  Dreams: see :class:`~pyro_dgm.infer.WakeSleep`.

    :param num_particles: number K of particles.
    :param guide_steps: train model and guide in phases of their own: see :class:`~pyro_dgm.infer.WakeSleep`.
    :param phi: what trains the guide: ``"wake"`` (:math:`\lambda = 1`), ``"sleep"`` (:math:`\lambda = 0`) or
        :math:`\lambda` itself, in [0, 1].
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for another ``phi``; when trained, if a guide site is a function of parameters (``Delta``), and
        with a sleep part where :class:`~pyro_dgm.infer.WakeSleep` raises.
    :raises TypeError: when used with a ``GuideMessenger`` guide.

    Source: J. Bornschein and Y. Bengio (2015), arXiv:1406.2751; T. A. Le, A. R. Kosiorek, N. Siddharth, Y. W. Teh and
    F. Wood (2019), arXiv:1805.10469.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> objective = pyro_dgm.infer.ReweightedWakeSleep(num_particles=10, phi=0.8)
        >>> objective(m.model, m.guide)(torch.zeros(7, 3)).backward()
    """

    averages_weights = True

    num_particles: int = 5
    phi: Any = "wake"

    def __post_init__(self) -> None:
        share = {"wake": 1.0, "sleep": 0.0}.get(self.phi) if isinstance(self.phi, str) else self.phi
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f'phi must be "wake", "sleep" or a number in [0, 1], got {self.phi!r}')
        super().__post_init__()
        self.phi = float(share)

    @property
    def dreams(self) -> bool:
        return self.phi < 1

    def model_surrogate(self, particles: Particles) -> Tensor:
        return (particles.log_weights.detach().softmax(0) * particles.log_p).sum()

    def guide_surrogate(self, particles: Particles) -> Tensor:
        total = particles.log_q.new_zeros(())
        if self.phi > 0:
            total = total + self.phi * (particles.log_weights.detach().softmax(0) * particles.log_q).sum()
        if self.dreams:
            total = total + (1 - self.phi) * particles.dream_log_q.sum()
        return total
