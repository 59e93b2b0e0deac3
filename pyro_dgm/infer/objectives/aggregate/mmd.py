"""InfoVAE and the Wasserstein autoencoder: aggregate posterior against prior by maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_dgm.infer.objectives.aggregate.aggregate import (
    AggregateObjective,
    elbo,
    kept_data,
    latents,
    prior_draws,
    reconstruction,
    to_each_datum,
)
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.ops.arguments import check_number
from pyro_dgm.ops.divergences import KERNELS, mmd

__all__ = ["MMDELBO"]


@dataclass(eq=False, repr=False)
class MMDELBO(AggregateObjective):
    r"""InfoVAE with the maximum mean discrepancy, and with ``alpha=1`` the Wasserstein autoencoder (WAE-MMD).

    .. math:: L = E_{q(z|x)}\left[\log p(x|z)\right] - (1 - \alpha)\, KL\left(q(z|x) \| p(z)\right)
              - (\alpha + \lambda - 1)\, \mathrm{MMD}^2\left(q(z) \| p(z)\right), \qquad q(z) = E_x\, q(z|x)

    The KL of the ELBO asks of *every* datum that its posterior be like the prior, and so takes information out of the
    latents; the discrepancy asks it of all data together.  Use it where latents are ignored (posterior collapse), or
    where samples of the prior decode poorly.  With ``alpha=1`` no density of the guide is used, so that a
    deterministic guide (a ``Delta`` site) will do.  ``alpha=0, lam=1`` is the ELBO.

    ``bound`` is this objective for each datum and no bound of :math:`\log p(x)`: the whole discrepancy of the batch is
    added to the loss of each datum, so that its weight does not depend on the size of the batch.  It is estimated for
    each particle from one latent of each datum and as many draws of the prior.  All latents of a datum count as one
    vector; where there are several, prior draws are ancestral (the model runs once more).  The prior's parameters are
    trained through its draws.

    :param num_particles: number of particles averaged over.
    :param alpha: :math:`\alpha \le 1`, how much of the KL is taken off.
    :param lam: :math:`\lambda \ge 1 - \alpha`, weight of the aggregate divergence.
    :param kernel: ``"rbf"`` or ``"imq"`` (inverse multiquadratic).
    :param bandwidth: h of the kernel, in units of the latents; the square root of their number if not given.
    :param scales: multiples of :math:`h^2` that the kernel is averaged over.
    :param unbiased: estimate the squared discrepancy without bias (needs two data); else by the V-statistic.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for values out of range; when used: for a guide site that is not reparameterised, a program
        whose latents are in no plate of data, an enumerated model, a prior that is learned and not reparameterised, or
        a single datum where ``unbiased``.

    Source: S. Zhao, J. Song and S. Ermon (2019), arXiv:1706.02262; I. Tolstikhin, O. Bousquet, S. Gelly and
    B. Schoelkopf (2018), arXiv:1711.01558.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import MMDELBO
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> MMDELBO(alpha=1.0, lam=10.0, kernel="imq").bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    min_data = 2
    draws_prior = moves_prior = True

    alpha: float = 0.0
    lam: float = 10.0
    kernel: str = "rbf"
    bandwidth: float | None = None
    scales: Sequence[float] = (1.0,)
    unbiased: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha)
        if not self.alpha <= 1:
            raise ValueError(f"alpha must be at most 1, got {self.alpha!r}")
        check_number("lam", self.lam)
        if not self.alpha + self.lam >= 1:
            least = f"1 - alpha = {1 - self.alpha:g}"
            raise ValueError(f"lam must be at least {least}, got {self.lam!r}: the MMD would be rewarded")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be 'rbf' or 'imq', got {self.kernel!r}")
        check_number("bandwidth", self.bandwidth, optional=True)
        self.scales = tuple(self.scales)
        if (self.bandwidth is not None and not self.bandwidth > 0) or not self.scales or not min(self.scales) > 0:
            raise ValueError(f"bandwidth and scales must be positive, got {self.bandwidth!r} and {self.scales}")
        self.min_data = 2 if self.unbiased else 1

    def bound_of(self, particles: Particles) -> Tensor:
        z, prior = latents(particles), prior_draws(particles)
        distance = mmd(z, prior, self.kernel, self.bandwidth, self.scales, self.unbiased, kept_data(particles))
        total = -(self.alpha + self.lam - 1) * to_each_datum(particles, distance)
        if self.alpha:
            total = total + self.alpha * reconstruction(particles)
        if self.alpha != 1:
            total = total + (1 - self.alpha) * elbo(particles)
        return total
