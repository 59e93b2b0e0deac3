"""Adversarial variational Bayes: the ELBO of a guide that can be sampled but has no density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.adversarial.base import DiscriminatorObjective
from pyro_dgm.infer.objectives.adversarial.discriminator import logistic_loss
from pyro_dgm.infer.objectives.aggregate.aggregate import (
    kept_data,
    latent_sites,
    latents,
    prior_draws,
    reconstruction,
    rerun_model,
    to_each_datum,
)
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.score_function.baselines import observed_features
from pyro_dgm.programs.structure import sample_sites

__all__ = ["AdversarialELBO"]


@dataclass(eq=False, repr=False)
class AdversarialELBO(DiscriminatorObjective):
    r"""The ELBO with its KL estimated by a discriminator (adversarial variational Bayes).

    .. math:: L = E_{q(z|x)}\left[\log p(x|z) - T_\psi(x, z)\right], \qquad
              \max_\psi E_{x}\left[E_{q(z|x)} \log \sigma(T_\psi(x, z)) + E_{p(z)} \log(1 - \sigma(T_\psi(x, z)))\right]

    At its optimum :math:`T = \log q(z|x) - \log p(z)` and L is the ELBO.  The guide's density is never used: its
    latents may be any reparameterised function of noise, which it draws as sites of its own
    (``infer={"is_auxiliary": True}``) and turns into a ``Delta``.  Use it for such guides; where the guide has a
    density, the ELBO is the surer choice.  The ratio is hard to learn where guide and prior are far apart (many
    latents, sharp posteriors), and then it comes out too small.

    The network T of observed values (averaged over plates inside a datum) and latents is trained by the optimiser that
    trains the program, or by one of its own.  Parameters of the prior are trained on :math:`\log p(z)` itself.  The
    program is not led by the discriminator's loss, nor the discriminator by the program's.

    ``bound`` is L for each datum at the present T, and no bound of :math:`\log p(x)` unless T is optimal.

    :param num_particles: number of particles averaged over.
    :param hidden: units of the discriminator's hidden layers.
    :param network: makes the discriminator from its number of inputs (observed values first, then latents), a module
        with one output; instead of ``hidden``.
    :param discriminator_steps: train the discriminator in a phase of its own, with so many steps for each of the
        program's; by default one step trains both.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for sizes that are not positive; when used: for a guide site that is not reparameterised, an
        enumerated model, or a datum of another size than at first.
    :raises TypeError: for a ``network`` that is no function.

    Source: L. Mescheder, S. Nowozin and A. Geiger (2017), arXiv:1701.04722.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import AdversarialELBO
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> AdversarialELBO(hidden=(32,)).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    min_data = 0

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        particles = super().particles(model, guide, args, kwargs, grad)
        if grad:
            particles._cache["prior"] = self._draw_prior(particles, model, args, kwargs)
            particles._cache["prior at numbers"] = self._log_prior(particles, model, args, kwargs)
        return particles

    def rows(self, particles: Particles) -> Tensor:
        return _rows(particles, latents(particles))

    def bound_of(self, particles: Particles) -> Tensor:
        rows = self.rows(particles)
        return reconstruction(particles) - to_each_datum(particles, self.discriminator(rows).frozen(rows))

    def program_surrogate(self, particles: Particles, bound: Tensor) -> Tensor:
        prior = particles._cache["prior at numbers"]
        return bound.sum() + to_each_datum(particles, prior - prior.detach()).sum()

    def discriminator_loss(self, particles: Particles) -> Tensor:
        kept = kept_data(particles)
        drawn = _rows(particles, latents(particles).detach())
        dreamt = _rows(particles, prior_draws(particles).detach())
        net = self.discriminator(drawn)
        return logistic_loss(net(drawn), 1.0, kept) + logistic_loss(net(dreamt), -1.0, kept)

    def _log_prior(self, particles: Particles, model: Any, args: tuple, kwargs: dict) -> Tensor:
        """The prior's log-density at the latents taken as numbers: its gradient reaches the prior alone."""
        names, rows = latent_sites(particles), []
        lead = particles.num_particles if particles.vectorized else 1
        for k, (model_trace, _) in enumerate(particles.pairs):
            if len(names) == 1:
                site = sample_sites(model_trace)[names[0]]
                terms = [particles.reduce(site["fn"].log_prob(site["value"].detach()), site)]
            else:  # one latent's distribution may be made of another's value: all of them have to be numbers
                sites = rerun_model(particles, k, model, args, kwargs, keep_latents=True)
                terms = [particles.reduce(sites[n]["fn"].log_prob(sites[n]["value"]), sites[n]) for n in names]
            rows.append(sum(terms[1:], terms[0]).reshape(-1, particles.shape.numel()).expand(lead, -1))
        return torch.cat(rows)


def _rows(particles: Particles, z: Tensor) -> Tensor:
    """Observed values beside latents, ``(K, N, features)``."""
    x = observed_features(particles).reshape(particles.shape.numel(), -1)
    return torch.cat([x.expand(z.shape[0], *x.shape), z], -1)
