"""The sliced Wasserstein autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_dgm.infer.objectives.aggregate.aggregate import (
    AggregateObjective,
    kept_data,
    latents,
    prior_draws,
    reconstruction,
    to_each_datum,
)
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.ops.arguments import check_count, check_number
from pyro_dgm.ops.divergences import sliced_wasserstein

__all__ = ["SlicedWasserstein"]


@dataclass(eq=False, repr=False)
class SlicedWasserstein(AggregateObjective):
    r"""Reconstruction with the sliced Wasserstein distance between aggregate posterior and prior (SWAE).

    .. math:: L = E_{q(z|x)}\left[\log p(x|z)\right] - \lambda\, \mathrm{SW}_2^2\left(q(z), p(z)\right),
              \qquad q(z) = E_x\, q(z|x)

    As :class:`~pyro_dgm.infer.MMDELBO` with ``alpha=1``, with a distance that has no kernel to choose and
    whose gradient does not fade however far latents and prior are apart.  It is biased upwards in small batches; use a
    hundred data or more.  No density of the guide is used, so that a deterministic guide (a ``Delta`` site) will do.

    ``bound`` is this objective for each datum and no bound of :math:`\log p(x)`: the whole distance of the batch
    is added to the loss of each datum.  It is measured for each particle between one latent of each datum and as many
    draws of the prior, in new random directions for each evaluation.  All latents of a datum
    count as one vector; where there are several, prior draws are ancestral (the model runs once more).  The prior's
    parameters are trained through its draws.

    :param num_particles: number of particles averaged over.
    :param lam: weight :math:`\lambda \ge 0` of the distance.
    :param num_projections: directions that the distance is averaged over.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for values out of range; when used: for a guide site that is not reparameterised, a program
        whose latents are in no plate of data, an enumerated model, or a prior that is learned and not reparameterised.

    Source: S. Kolouri, P. E. Pope, C. E. Martin and G. K. Rohde (2018), arXiv:1804.01947.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import SlicedWasserstein
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> SlicedWasserstein(lam=5.0).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    draws_prior = moves_prior = True

    num_projections: int = 50
    lam: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lam", self.lam, least=0)
        check_count("num_projections", self.num_projections)

    def bound_of(self, particles: Particles) -> Tensor:
        distance = sliced_wasserstein(
            latents(particles), prior_draws(particles), self.num_projections, kept_data(particles)
        )
        return reconstruction(particles) - self.lam * to_each_datum(particles, distance)
