"""An amortised guide of a datum's latent: a flow around the location and scale of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_dgm.distributions.flow import FlowDistribution, standard_normal
from pyro_dgm.distributions.transforms import Bijection, Compose, LocationScale, make_flow
from pyro_dgm.nn import make_network
from pyro_dgm.ops.arguments import check_count

__all__ = ["AmortizedFlow"]


class AmortizedFlow(nn.Module):
    r"""Amortised posterior of a latent: an encoder gives location, scale and context, and a flow the shape.

    .. math:: (\mu, \sigma, h) = e_\phi(x), \qquad z = \mu + \sigma \odot f_\phi(\epsilon; h), \qquad
              \epsilon \sim N(0, I)

    Give it to :class:`~pyro_dgm.models.VAE` as ``guide=``, or call it in a guide of your own. The flow of layers by
    name starts near the identity, so the guide starts near the diagonal Gaussian one.

    :param event_shape: shape of one datum.
    :param latent_dim: length of the latent.
    :param transform: name, transform or callable, as of :func:`~pyro_dgm.distributions.transforms.make_flow`. Its
        forward direction should be the fast one.
    :param num_layers: layers, where ``transform`` is a name.
    :param network: encoder: ``"mlp"``, ``"conv"`` (image event shapes), or a module that gives
        ``batch + (2 * latent_dim + num_features,)``.
    :param hidden: hidden widths of the encoder; channels for ``"conv"``.
    :param num_features: length of :math:`h`; 0 for a flow that is the same for all data.
    :param context_dim: length of the context vectors of a conditional model, which the encoder takes too; 0 for none.
    :param options: other arguments of each layer, ``{"hidden": (64,)}`` say.
    :raises ValueError: for unknown names, or sizes out of range.

    Source: D. P. Kingma, T. Salimans, R. Jozefowicz et al. (2016), arXiv:1606.04934; D. J. Rezende and S. Mohamed
    (2015), arXiv:1505.05770.

    Example::

        >>> import torch, pyro_dgm
        >>> guide = pyro_dgm.guides.AmortizedFlow((8, 8), 2, hidden=(32,))
        >>> vae = pyro_dgm.models.VAE((8, 8), 2, hidden=(32,), guide=guide)
        >>> x = torch.zeros(5, 8, 8)
        >>> pyro_dgm.infer.IWAE(3).bound(vae.model, vae.guide, x).shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        transform: str | Bijection | Callable[..., Bijection] = "affine_autoregressive",
        num_layers: int = 2,
        *,
        network: str | nn.Module = "mlp",
        hidden: Sequence[int] = (400, 400),
        num_features: int = 16,
        context_dim: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = check_count("latent_dim", latent_dim)
        self.num_features = check_count("num_features", num_features, 0)
        out = (2 * self.latent_dim + self.num_features,)
        self.encoder = make_network(
            network, tuple(event_shape), out, hidden, context=check_count("context_dim", context_dim, 0)
        )
        self.flow = make_flow(
            transform,
            self.latent_dim,
            num_layers=num_layers,
            context_dim=self.num_features,
            fast="forward",
            options=options,
        )

    def forward(self, x: Tensor, *context: Tensor) -> FlowDistribution:
        """The distribution of the latent, of batch shape ``(N,)``."""
        sizes = (self.latent_dim, self.latent_dim, self.num_features)
        loc, raw, features = self.encoder(x, *context).split(sizes, -1)
        transform = Compose([self.flow, LocationScale(loc, softplus(raw).log())])
        base = standard_normal(self.flow).expand(loc.shape[:-1])
        return FlowDistribution(
            transform, base, features if self.num_features else None, remember=True, validate_args=False
        )
