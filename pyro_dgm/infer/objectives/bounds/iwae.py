"""The importance weighted bound."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyro_dgm.infer.objectives.bounds.renyi import RenyiELBO

__all__ = ["IWAE"]


@dataclass(eq=False, repr=False)
class IWAE(RenyiELBO):
    r"""Importance weighted autoencoder bound: the log of the average of K importance weights.

    .. math:: L_K = E\left[\log \frac{1}{K} \sum_{k=1}^{K} \frac{p(x, z_k)}{q(z_k|x)}\right], \qquad
              L_1 = \mathrm{ELBO} \le L_K \le L_{K+1} \le \log p(x)

    Tighter than the ELBO, and with many particles the usual estimate of :math:`\log p(x)`; always say K beside it.
    The gradient of the *guide* loses its signal as K grows (its signal-to-noise ratio falls as
    :math:`1/\sqrt{K}`): to train a guide with many particles use :class:`~pyro_dgm.infer.DReG`.

    :param num_particles: number K of particles.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.

    Source: Y. Burda, R. Grosse and R. Salakhutdinov (2016), arXiv:1509.00519; T. Rainforth et al. (2018),
    arXiv:1802.04537, for the signal-to-noise ratio.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.IWAE(num_particles=50).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    num_particles: int = 5
    alpha: float = field(default=0.0, init=False)
