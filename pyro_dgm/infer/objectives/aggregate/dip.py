"""Disentangled inferred prior: the covariance of the aggregate posterior drawn to the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.aggregate.aggregate import elbo, kept_data, to_each_datum
from pyro_dgm.infer.objectives.aggregate.factorised import FactorisedObjective, posterior_moments
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.ops.arguments import check_number

__all__ = ["DIP"]


@dataclass(eq=False, repr=False)
class DIP(FactorisedObjective):
    r"""The ELBO with a penalty on the covariance of the aggregate posterior (DIP-VAE I and II).

    .. math:: L = \mathrm{ELBO} - \lambda_{od} \sum_{i \ne j} C_{ij}^2 - \lambda_d \sum_i (C_{ii} - 1)^2, \qquad
              C_I = \mathrm{Cov}_x\left[E_q[z|x]\right], \quad C_{II} = C_I + E_x\left[\mathrm{Cov}_q[z|x]\right]

    Decorrelated latents at the price of a matrix product: cheaper and steadier than a penalty on the total correlation
    (:class:`~pyro_dgm.infer.BetaTC`), but it sees second moments only.  Type I penalises the means, which
    also keeps latents from falling idle; type II the latents themselves.  The prior is taken to have covariance I.

    ``bound`` is this objective for each datum, lower than the ELBO by the penalty.  Moments are those of the batch
    (divided by its size).  The whole penalty is added to the loss of each datum, as in the paper, so that its weight
    does not depend on the size of the batch.

    :param num_particles: number of particles that the ELBO is averaged over.
    :param kind: 1 or 2.
    :param off_diagonal: :math:`\lambda_{od} \ge 0`.
    :param diagonal: :math:`\lambda_d \ge 0`; if not given ten times ``off_diagonal`` for type I and as much for type
        II, as in the paper.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for values out of range; when used: for a guide site that is not reparameterised, depends on
        another, is not in the model or has no mean (type II: covariance) in closed form; for a program whose latents
        are in no plate of data.
    :raises TypeError: when used with a ``GuideMessenger`` guide.

    Source: A. Kumar, P. Sattigeri and A. Balakrishnan (2018), arXiv:1711.00848.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import DIP
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> DIP(kind=2).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    kind: int = 1
    off_diagonal: float = 10.0
    diagonal: float = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.kind, bool) or self.kind not in (1, 2):
            raise ValueError(f"kind must be 1 or 2, got {self.kind!r}")
        check_number("off_diagonal", self.off_diagonal)
        if self.diagonal is None:
            self.diagonal = self.off_diagonal * (10 if self.kind == 1 else 1)
        check_number("diagonal", self.diagonal)
        if not self.off_diagonal >= 0 or not self.diagonal >= 0:
            raise ValueError(
                f"off_diagonal and diagonal must be at least 0, got {self.off_diagonal!r} and {self.diagonal!r}"
            )

    def bound_of(self, particles: Particles) -> Tensor:
        return elbo(particles) - to_each_datum(particles, self.penalty_of(particles)[None])

    def penalty_of(self, particles: Particles) -> Tensor:
        """The penalty of the batch, a scalar."""
        mean, within = posterior_moments(particles, self, covariance=self.kind == 2)
        kept = kept_data(particles)
        share = torch.ones_like(mean[:, 0]) if kept is None else kept[0].to(mean.dtype)
        share = share / share.sum().clamp(min=1)
        centred = mean - share @ mean
        covariance = (share[:, None] * centred).mT @ centred
        if within is not None:
            covariance = covariance + torch.einsum("n,nij->ij", share, within)
        diagonal = covariance.diagonal()
        off = (covariance**2).sum() - (diagonal**2).sum()
        return self.off_diagonal * off + self.diagonal * ((diagonal - 1) ** 2).sum()
