"""FactorVAE: the total correlation of the aggregate posterior, estimated by a discriminator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.adversarial.base import DiscriminatorObjective
from pyro_dgm.infer.objectives.adversarial.discriminator import logistic_loss
from pyro_dgm.infer.objectives.aggregate.aggregate import elbo, kept_data, latents, to_each_datum
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.ops.arguments import check_number

__all__ = ["FactorVAE"]


@dataclass(eq=False, repr=False)
class FactorVAE(DiscriminatorObjective):
    r"""The ELBO with a penalty on the total correlation of the latents, estimated by a discriminator.

    .. math:: L = \mathrm{ELBO} - \gamma\, E_{q(z)}\left[T_\psi(z)\right], \qquad
              \max_\psi E_{q(z)} \log \sigma(T_\psi(z)) + E_{\bar q(z)} \log(1 - \sigma(T_\psi(z))), \quad
              \bar q(z) = \prod_d q(z_d)

    At its optimum :math:`E_{q(z)} T` is the total correlation :math:`KL(q(z) \| \bar q(z))`.  Draws of :math:`\bar q`
    are the batch's latents with each dimension shuffled over the data.  For independent latents ("disentangled") as
    :class:`~pyro_dgm.infer.BetaTC`, without the bias of that one's density estimate in small batches and
    without a density of the guide's dimensions, so that any reparameterised guide will do; but there is a network to
    train beside, by the program's optimiser or one of its own.  The program is not led by the discriminator's loss,
    nor the discriminator by the program's.

    Draws of q and of :math:`\bar q` for the discriminator come from one batch, where the paper takes two.

    ``bound`` is L for each datum at the present T, and no bound of :math:`\log p(x)`.

    :param num_particles: number of particles averaged over; latents are shuffled over the data of each.
    :param gamma: weight :math:`\gamma \ge 0` of the total correlation.
    :param hidden: units of the discriminator's hidden layers.
    :param network: makes the discriminator from its number of inputs (all latents of a datum), a module with one
        output; instead of ``hidden``.
    :param discriminator_steps: train the discriminator in a phase of its own, with so many steps for each of the
        program's; by default one step trains both.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for values out of range; when used: for a guide site that is not reparameterised, a program
        whose latents are in no plate of data, an enumerated model, a single datum, or a datum of another size than at
        first.
    :raises TypeError: for a ``network`` that is no function.

    Source: H. Kim and A. Mnih (2018), arXiv:1802.05983.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import FactorVAE
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> FactorVAE(gamma=6.0, hidden=(32,)).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    min_data = 2

    gamma: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma, least=0)

    def rows(self, particles: Particles) -> Tensor:
        return latents(particles)

    def bound_of(self, particles: Particles) -> Tensor:
        z = latents(particles)
        return elbo(particles) - self.gamma * to_each_datum(particles, self.discriminator(z).frozen(z))

    def discriminator_loss(self, particles: Particles) -> Tensor:
        z, kept = latents(particles).detach(), kept_data(particles)
        net = self.discriminator(z)
        shuffled, left = shuffle(z, kept)
        return logistic_loss(net(z), 1.0, kept) + logistic_loss(net(shuffled), -1.0, left)


def shuffle(z: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Shuffle each dimension of ``(K, N, D)`` draws over the N that are kept, and say which of the rows then count."""
    keys = torch.rand_like(z)
    if kept is None:
        return z.gather(1, keys.argsort(1)), None
    # Masked draws go to the end, in every dimension alike.
    order = (keys + (~kept)[..., None]).argsort(1)
    return z.gather(1, order), kept.sort(1, descending=True).values
