"""A guide without noise: an encoder gives the latent itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_dgm.nn import make_network
from pyro_dgm.ops.arguments import check_count

__all__ = ["Deterministic"]


class Deterministic(nn.Module):
    r"""Deterministic encoder: all mass of a datum's posterior at one point.

    .. math:: q_\phi(z \mid x) = \delta(z - e_\phi(x))

    For autoencoders whose objective uses draws of the guide, not its density: Wasserstein autoencoders under
    :class:`~pyro_dgm.infer.MMDELBO` with ``alpha=1`` or :class:`~pyro_dgm.infer.SlicedWasserstein`. Under an ELBO its
    entropy is missing. Give it to :class:`~pyro_dgm.models.VAE` as ``guide=``.

    :param event_shape: shape of one datum.
    :param latent_dim: length of the latent.
    :param network: encoder: ``"mlp"``, ``"conv"`` (image event shapes), or a module that gives
        ``batch + (latent_dim,)``.
    :param hidden: hidden widths of the encoder; channels for ``"conv"``.
    :param activation: a module class; ``None`` takes the network's own.
    :param context_dim: length of the context vectors of a conditional model, which the encoder takes too; 0 for none.
    :raises ValueError: for unknown names, or sizes out of range.

    Source: I. Tolstikhin, O. Bousquet, S. Gelly and B. Schoelkopf (2018), arXiv:1711.01558.

    Example::

        >>> import torch, pyro_dgm
        >>> guide = pyro_dgm.guides.Deterministic((8, 8), 2, hidden=(32,))
        >>> vae = pyro_dgm.models.VAE((8, 8), 2, "gaussian", hidden=(32,), guide=guide)
        >>> vae.posterior(torch.zeros(5, 8, 8)).mean.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        *,
        network: str | nn.Module = "mlp",
        hidden: Sequence[int] = (400, 400),
        activation: Callable[[], nn.Module] | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        out = (check_count("latent_dim", latent_dim),)
        context = check_count("context_dim", context_dim, 0)
        self.encoder = make_network(network, tuple(event_shape), out, hidden, activation, context=context)

    def forward(self, x: Tensor, *context: Tensor) -> dist.Delta:
        """The distribution of the latent, of batch shape ``(N,)``."""
        return dist.Delta(self.encoder(x, *context), event_dim=1, validate_args=False)
