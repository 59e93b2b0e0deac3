"""FactorVAE: the total correlation of the aggregate posterior, estimated by a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.infer.objectives.adversarial.discriminator import Discriminator, check_network, logistic_loss
from pyro_dgm.infer.objectives.aggregate.aggregate import AggregateObjective, counted, elbo, latents, spread
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.score_function.baselines import look
from pyro_dgm.ops.arguments import check_number
from pyro_dgm.ops.random_state import fork_rng

__all__ = ["FactorVAE"]


@dataclass(eq=False, repr=False)
class FactorVAE(AggregateObjective):
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
    :param max_plate_nesting, vectorize_particles, strict_enumeration_warning, retain_graph: see
        :class:`~pyro_dgm.infer.ParticleObjective`.
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
    hidden: Sequence[int] = (128, 128)
    network: Callable[[int], nn.Module] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not check_number("gamma", self.gamma) >= 0:
            raise ValueError(f"gamma must be at least 0, got {self.gamma!r}")
        self.hidden = check_network(self.hidden, self.network)

    def build_learned(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> nn.Module | None:
        particles = look(model, guide, args, kwargs, self._structures.get(model, guide, args, kwargs))
        self.require(particles)
        rows = latents(particles)
        with fork_rng():
            return Discriminator(rows.shape[-1], self.hidden, self.network, rows)

    def bound_of(self, particles: Particles) -> Tensor:
        z = latents(particles)
        return elbo(particles) - self.gamma * spread(particles, self._discriminator(z).frozen(z))

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        z, kept = latents(particles).detach(), counted(particles)
        net = self._discriminator(z)
        shuffled, left = shuffle(z, kept)
        loss = logistic_loss(net(z), 1.0, kept) + logistic_loss(net(shuffled), -1.0, left)
        return particles.outer_scale * (bound.sum() - loss)

    def _discriminator(self, z: Tensor) -> Discriminator:
        assert isinstance(self.learned, Discriminator)
        self.learned.require(self, z)
        return self.learned


def shuffle(z: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Shuffle each dimension of ``(K, N, D)`` draws over the N that are kept, and say which of the rows then count."""
    keys = torch.rand_like(z)
    if kept is None:
        return z.gather(1, keys.argsort(1)), None
    # Masked draws go to the end, in every dimension alike.
    order = (keys + (~kept)[..., None]).argsort(1)
    return z.gather(1, order), kept.sort(1, descending=True).values
