"""An amortised guide of a latent on the sphere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from pyro_dgm.distributions.von_mises_fisher import VonMisesFisher
from pyro_dgm.nn import make_network
from pyro_dgm.ops.arguments import check_count, check_positive

__all__ = ["AmortizedVonMisesFisher"]


class AmortizedVonMisesFisher(nn.Module):
    r"""Amortised posterior of a direction: an encoder gives the mean direction and the concentration.

    .. math:: (h, k) = e_\phi(x), \qquad q(z \mid x) = \mathrm{vMF}\left(\frac{h}{|h|},\ \mathrm{softplus}(k) +
              \kappa_0\right)

    Give it to :class:`~pyro_dgm.models.VAE` as ``guide=``, with ``prior="sphere"``: this is the hyperspherical
    autoencoder. Its divergence from the prior is known in closed form.

    :param event_shape: shape of one datum.
    :param latent_dim: length of the unit vector, at least 2.
    :param network: encoder: ``"mlp"``, ``"conv"`` (image event shapes), or a module that gives
        ``batch + (latent_dim + 1,)``.
    :param hidden: hidden widths of the encoder; channels for ``"conv"``.
    :param min_concentration: :math:`\kappa_0`, 1 in the source.
    :param context_dim: length of the context vectors of a conditional model, which the encoder takes too; 0 for none.
    :raises TypeError, ValueError: for unknown names, or sizes out of range.

    Source: T. R. Davidson, L. Falorsi, N. De Cao, T. Kipf and J. M. Tomczak (2018), arXiv:1804.00891.

    Example::

        >>> import torch, pyro_dgm
        >>> guide = pyro_dgm.guides.AmortizedVonMisesFisher((8, 8), 3, hidden=(32,))
        >>> vae = pyro_dgm.models.VAE((8, 8), 3, hidden=(32,), prior="sphere", guide=guide)
        >>> x = torch.zeros(5, 8, 8)
        >>> pyro_dgm.infer.ELBO().bound(vae.model, vae.guide, x).shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        *,
        network: str | nn.Module = "mlp",
        hidden: Sequence[int] = (400, 400),
        min_concentration: float = 1.0,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.latent_dim = check_count("latent_dim", latent_dim, 2)
        check_positive("min_concentration", min_concentration)
        self.min_concentration = float(min_concentration)
        self.encoder = make_network(
            network,
            tuple(event_shape),
            (self.latent_dim + 1,),
            hidden,
            context=check_count("context_dim", context_dim, 0),
        )

    def forward(self, x: Tensor, *context: Tensor) -> VonMisesFisher:
        """The distribution of the latent, of batch shape ``(N,)``."""
        direction, raw = self.encoder(x, *context).split((self.latent_dim, 1), -1)
        concentration = softplus(raw.squeeze(-1)) + self.min_concentration
        return VonMisesFisher(normalize(direction, dim=-1), concentration, validate_args=False)
