"""The beta-TC-VAE objective: the KL of the ELBO in three parts, each with a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.aggregate.aggregate import kept_data, log_prior, reconstruction, to_each_datum
from pyro_dgm.infer.objectives.aggregate.factorised import FactorisedObjective, pairwise_log_q
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.ops.arguments import check_choice, check_count, check_number

__all__ = ["BetaTC"]


@dataclass(eq=False, repr=False)
class BetaTC(FactorisedObjective):
    r"""The ELBO with its KL split into three parts: index-code information, total correlation, dimension-wise KL.

    .. math:: L = E_{q(z|x)}\left[\log p(x|z)\right] - \alpha\, I_q(z; x)
              - \beta\, KL\left(q(z) \,\|\, \prod_d q(z_d)\right) - \gamma \sum_d KL\left(q(z_d) \| p(z_d)\right)

    with :math:`q(z) = \frac1N \sum_n q(z|x_n)` over the N data.  With all weights 1 it is the ELBO.  A weight
    :math:`\beta > 1` on the total correlation alone asks for independent latents ("disentangled") without taking as
    much information out of them as a weighted KL does.

    The density of the aggregate is estimated from the M data of the batch: by ``"mws"`` (minibatch weighted sampling,
    the paper's) as :math:`\log q(z_i) \approx \log \frac{1}{NM} \sum_j q(z_i|x_j)`, or by ``"mss"`` (stratified) with
    weights :math:`\frac1N` for j = i and :math:`\frac{N-1}{N(M-1)}` for the others, of which :math:`q(z_i)` is the
    mean.  With ``"mss"`` the three parts are what they are called, up to the bias of a logarithm, and without bias
    where the batch is the whole data set.  With ``"mws"`` densities come out too low, by N where the batch is the
    whole data set, and the parts are off by the logarithms; N moves them by a number, so that the gradient does not
    depend on it.  The sum of the parts is the KL with either.

    ``bound`` is this objective for each datum and no bound of :math:`\log p(x)` unless the weights are 1.

    :param num_particles: number of particles averaged over.
    :param alpha: weight of the index-code mutual information.
    :param beta: weight of the total correlation.
    :param gamma: weight of the dimension-wise KL.
    :param num_data: N; if not given, the full size of the plates, which is that of the batch where the program sees
        mini-batches only.
    :param sampling: ``"mws"`` or ``"mss"``.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for values out of range; when used: for a guide site that is not reparameterised, depends on
        another, has no density of each dimension or is not in the model; for a program whose latents are in no plate
        of data; for more data in a batch than ``num_data``; for a single datum and ``"mss"``.
    :raises TypeError: when used with a ``GuideMessenger`` guide.

    Source: R. T. Q. Chen, X. Li, R. Grosse and D. Duvenaud (2018), arXiv:1802.04942.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import BetaTC
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> BetaTC(beta=6.0, num_data=1000).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    num_data: int | None = None
    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 1.0
    sampling: str = "mws"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta", "gamma"):
            check_number(name, getattr(self, name), least=0)
        check_count("num_data", self.num_data, optional=True)
        check_choice("sampling", self.sampling, "mws", "mss")
        self.min_data = 2 if self.sampling == "mss" else 1

    def bound_of(self, particles: Particles) -> Tensor:
        information, correlation, dimensions = self.parts_of(particles)
        return (
            reconstruction(particles)
            - self.alpha * to_each_datum(particles, information)
            - self.beta * to_each_datum(particles, correlation)
            - self.gamma * to_each_datum(particles, dimensions)
        )

    def parts_of(self, particles: Particles) -> tuple[Tensor, Tensor, Tensor]:
        """Index-code information, total correlation and dimension-wise KL at each particle and datum, ``(K, N)``, nats.

        Single draws: their means over particles and data are the estimates.
        """
        joint, dims = pairwise_log_q(particles, self)
        log_weights = self._log_weights(particles, joint)
        own = joint.diagonal(dim1=1, dim2=2)
        together = torch.logsumexp(joint + log_weights, 2)
        apart = torch.logsumexp(dims + log_weights[..., None], 2).sum(-1)
        return own - together, together - apart, apart - log_prior(particles)

    def _log_weights(self, particles: Particles, joint: Tensor) -> Tensor:
        size = joint.shape[-1]
        full = math.prod(f.full_size or f.size for f in particles.plates) if self.num_data is None else self.num_data
        if full < size:
            raise ValueError(f"num_data must be at least the {size} data of the batch, got {full}")
        itself = torch.eye(size, dtype=torch.bool, device=joint.device)
        kept = kept_data(particles)
        count = joint.new_full((1, 1, 1), size) if kept is None else kept.sum(-1).to(joint.dtype)[:, None, None]
        if self.sampling == "mws":
            weights = (-math.log(full) - count.clamp(min=1).log()).expand(-1, size, size)
        else:
            other = math.log(full - 1) - math.log(full) - (count - 1).clamp(min=1).log()
            weights = torch.where(itself, joint.new_full((), -math.log(full)), other)
        # A masked datum is no part of the aggregate; it keeps its own term, so that no logarithm of zero is taken.
        return weights if kept is None else weights.masked_fill(~(kept[:, None, :] | itself), -torch.inf)
