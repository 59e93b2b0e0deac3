"""An implicit guide: a network turns data and noise into the latent, and there is no density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.nn import make_network
from pyro_dgm.ops.arguments import check_count

__all__ = ["Implicit"]


class Implicit(nn.Module):
    r"""Implicit posterior: a network takes the datum and noise, and gives the latent.

    .. math:: \epsilon \sim N(0, I), \qquad z = e_\phi(x, \epsilon)

    The posterior can have any shape, and no density. Train it with :class:`~pyro_dgm.infer.AdversarialELBO`, which
    needs draws alone; objectives that need the density give wrong values. Give it to
    :class:`~pyro_dgm.models.VAE` as ``guide=``: the noise is the auxiliary site ``noise``, and the latent a ``Delta``.

    :param event_shape: shape of one datum.
    :param latent_dim: length of the latent.
    :param noise_dim: length of the noise; ``None`` for that of the latent.
    :param network: ``"mlp"``, or a module that takes the datum and the noise as a second argument, and gives
        ``batch + (latent_dim,)``.
    :param hidden: hidden widths of the network.
    :param activation: a module class; ``None`` takes the network's own.
    :raises ValueError: for unknown names, or sizes out of range.

    Source: L. Mescheder, S. Nowozin and A. Geiger (2017), arXiv:1701.04722.

    Example::

        >>> import torch, pyro_dgm
        >>> guide = pyro_dgm.guides.Implicit((8, 8), 2, noise_dim=4, hidden=(32,))
        >>> vae = pyro_dgm.models.VAE((8, 8), 2, hidden=(32,), guide=guide)
        >>> objective = pyro_dgm.infer.AdversarialELBO(hidden=(32,))
        >>> objective.bound(vae.model, vae.guide, torch.zeros(5, 8, 8)).shape
        torch.Size([5])
    """

    noise_loc: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        noise_dim: int | None = None,
        *,
        network: str | nn.Module = "mlp",
        hidden: Sequence[int] = (400, 400),
        activation: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        out = (check_count("latent_dim", latent_dim),)
        size = check_count("noise_dim", latent_dim if noise_dim is None else noise_dim)
        self.encoder = make_network(network, tuple(event_shape), out, hidden, activation, context=size)
        self.register_buffer("noise_loc", torch.zeros(size), persistent=False)

    def forward(self, x: Tensor) -> dist.Delta:
        """Draw the noise, and give the latent as a distribution of one point, of batch shape ``(N,)``.

        Inside of the plate over data, as :class:`~pyro_dgm.models.VAE` calls it.
        """
        noise = dist.Normal(self.noise_loc, torch.ones_like(self.noise_loc), validate_args=False).to_event(1)
        drawn = pyro.sample("noise", noise.expand(x.shape[:1]), infer={"is_auxiliary": True})
        x = x.expand(drawn.shape[:-1] + x.shape[1:])  # particles stand to the left
        return dist.Delta(self.encoder(x, drawn), event_dim=1, validate_args=False)
