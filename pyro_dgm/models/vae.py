"""The variational autoencoder as a Pyro program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_dgm.distributions.likelihoods import (
    BernoulliLikelihood,
    CallableLikelihood,
    GaussianLikelihood,
    Likelihood,
    likelihood,
)
from pyro_dgm.models.base import Family, program_method
from pyro_dgm.nn import MLP, ConvDecoder, ConvEncoder
from pyro_dgm.ops.arguments import check_count

__all__ = ["VAE"]


class VAE(Family):
    r"""Variational autoencoder: a Gaussian latent, a network decoder, an amortised Gaussian guide.

    .. math:: z_n \sim N(0, I), \qquad x_n \mid z_n \sim p_\theta(x \mid d_\theta(z_n)), \qquad
              q_\phi(z_n \mid x_n) = N(\mu_\phi(x_n), \mathrm{diag}\,\sigma_\phi^2(x_n))

    It is a program and no more: the objective (:class:`~pyro_dgm.infer.ELBO`, :class:`~pyro_dgm.infer.IWAE`,
    :class:`~pyro_dgm.infer.DReG`, ...) and the sampler are chosen where they are used.

    :param event_shape: shape of one datum, of any rank (``(28, 28)``, ``(3, 32, 32)``, ``(12,)``).
    :param latent_dim: number of latent dimensions.
    :param likelihood: ``"bernoulli"``, ``"gaussian"``, a :class:`~pyro_dgm.distributions.Likelihood`, or any
        callable from the decoder's output (shape ``param_shape``) to a distribution.
    :param network: ``"mlp"``, ``"conv"`` (image event shapes), or a pair ``(encoder, decoder)`` of modules: the
        encoder gives ``batch + (2, latent_dim)`` (location, and scale before a softplus), the decoder
        ``batch + param_shape``, over any number of batch dimensions.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder; channels for ``"conv"``.
    :param activation: module between layers: a class, or its name in :mod:`torch.nn` (``"Tanh"``); ``None`` takes the
        network's own.
    :param param_shape: event shape of the decoder's output when ``likelihood`` is a callable.
    :raises ValueError: for unknown names, or sizes that are not positive.

    Source: D. P. Kingma and M. Welling (2014), arXiv:1312.6114; D. J. Rezende, S. Mohamed and D. Wierstra (2014),
    arXiv:1401.4082.

    Example::

        >>> import torch, pyro_dgm
        >>> vae = pyro_dgm.models.VAE(event_shape=(8, 8), latent_dim=2, hidden=(32,))
        >>> x = torch.zeros(5, 8, 8)
        >>> pyro_dgm.infer.ELBO().bound(vae.model, vae.guide, x).shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 20,
        likelihood: str | Likelihood | Callable[[Tensor], dist.TorchDistribution] = "bernoulli",
        network: str | tuple[nn.Module, nn.Module] = "mlp",
        hidden: Sequence[int] | None = None,
        activation: str | Callable[[], nn.Module] | None = None,
        param_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(event_shape)
        check_count("latent_dim", latent_dim)
        self.latent_dim = int(latent_dim)
        self.likelihood = make_likelihood(likelihood, self.event_shape, param_shape)
        self.takes_integers = isinstance(self.likelihood, CallableLikelihood)
        self._network_name = network if isinstance(network, str) else "custom"
        self.hidden = (
            tuple(hidden) if hidden is not None else {"mlp": (400, 400), "conv": (32, 64)}.get(self._network_name, ())
        )
        latent_out = (2, self.latent_dim)
        options, self._activation_name = _activation(activation)
        out_shape, backwards = self.likelihood.param_shape, self.hidden[::-1]
        encoder: nn.Module
        decoder: nn.Module
        if isinstance(network, tuple):
            encoder, decoder = network
        elif network == "mlp":
            encoder = MLP(self.event_shape, latent_out, self.hidden, **options)
            decoder = MLP((self.latent_dim,), out_shape, backwards, **options)
        elif network == "conv":
            encoder = ConvEncoder(self.event_shape, latent_out, self.hidden, **options)
            decoder = ConvDecoder((self.latent_dim,), out_shape, backwards, **options)
        else:
            raise ValueError(f"network must be 'mlp', 'conv' or a pair (encoder, decoder), got {network!r}")
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("prior_loc", torch.zeros(self.latent_dim))
        self.register_buffer("prior_scale", torch.ones(self.latent_dim))

    @program_method
    def model(self, x: Tensor) -> Tensor:
        """Draw ``z`` from the prior and observe ``x`` of shape ``(N, *event_shape)``; returns the decoder's output."""
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.prior_loc, self.prior_scale, validate_args=False).to_event(1))
            params = self.decoder(z)
            pyro.sample(self.obs_name, self.likelihood(params), obs=x)
        return params

    @program_method
    def guide(self, x: Tensor) -> Tensor:
        """Draw ``z`` from :math:`q_\\phi(z|x)`."""
        loc, scale = self.encode(x)
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            return pyro.sample("z", dist.Normal(loc, scale, validate_args=False).to_event(1))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of :math:`q_\\phi(z|x)`, each of shape ``(N, latent_dim)``."""
        loc, raw = self.encoder(x).unbind(-2)
        return loc, softplus(raw)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of :math:`p_\\theta(x|z)`: ``batch + (latent_dim,)`` to ``batch + event_shape``."""
        return self.likelihood.mean(self.decoder(z))

    def check_batch(self, x: Tensor) -> None:
        """As :meth:`Family.check_batch`; also that ``x`` is in the support of the likelihood (no grey Bernoulli)."""
        super().check_batch(x)
        self.likelihood.check(x)

    def config(self) -> dict[str, Any]:
        return {
            "event_shape": list(self.event_shape),
            "latent_dim": self.latent_dim,
            "likelihood": likelihood_config(self.likelihood),
            "network": self._network_name,
            "hidden": list(self.hidden),
            "activation": self._activation_name,
        }


def _activation(spec: str | Callable[[], nn.Module] | None) -> tuple[dict[str, Any], str | None]:
    """Options for a network's constructor, and the name that the configuration keeps."""
    if spec is None:
        return {}, None
    if isinstance(spec, str):
        found = getattr(nn, spec, None)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ValueError(f"activation must be a module class or its name in torch.nn, got {spec!r}")
        return {"activation": found}, spec
    name = getattr(spec, "__name__", "")
    return {"activation": spec}, name if getattr(nn, name, None) is spec else "custom"


def make_likelihood(spec: Any, event_shape: torch.Size, param_shape: Sequence[int] | None = None) -> Likelihood:
    """The likelihood of a family whose data have a shape."""
    # The constructor's argument shadows the function's name; also, a callable module stays one (its parameters count).
    made = likelihood(spec, event_shape, param_shape)
    if made.event_shape != event_shape and not isinstance(made, CallableLikelihood):
        raise ValueError(f"likelihood has event shape {tuple(made.event_shape)}, the family {tuple(event_shape)}")
    return made


def likelihood_config(made: Likelihood) -> dict[str, Any]:
    """What rebuilds a likelihood, for JSON: the library's by their words, any other by its class."""
    words = {BernoulliLikelihood: "bernoulli", GaussianLikelihood: "gaussian"}
    config: dict[str, Any] = {"name": words.get(type(made), type(made).__name__)}
    if isinstance(made, GaussianLikelihood):
        config["scale"] = float(made.log_scale.exp()) if made.kind == "fixed" else made.kind
        config["min_scale"] = made.min_scale
    return config
