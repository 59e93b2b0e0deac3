"""The variational autoencoder as a Pyro program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_dgm.distributions import likelihoods, priors
from pyro_dgm.models.base import Family, program_method
from pyro_dgm.models.context import Context
from pyro_dgm.nn.build import activation_and_name, hidden_sizes, make_network, network_name
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
    :param prior: a name in ``pyro_dgm.distributions.priors.PRIORS`` (``"normal"``, ``"mixture"``, ``"vamp"``,
        ``"flow"``, ``"sphere"``), a mapping with that ``"name"`` and options, or a callable (a module, whose parameters
        are trained) that gives the distribution of a latent, of event shape ``(latent_dim,)``; of a conditional model
        it is given the context vectors.  ``None`` is the standard normal.
    :param guide: callable from ``x`` (and context vectors) to the distribution of its latent, in place of the encoder.
    :param num_classes: the model is conditional on a class for each datum: its batches are ``(x, y)``, with integers
        ``y`` of shape ``(N,)``.  The networks get a one-hot vector beside their input; networks of your own as their
        second argument.
    :param context_dim: the model is conditional on a vector for each datum, ``(N, context_dim)``, likewise.
    :raises ValueError: for unknown names, or sizes that are not positive.

    Source: D. P. Kingma and M. Welling (2014), arXiv:1312.6114; D. J. Rezende, S. Mohamed and D. Wierstra (2014),
    arXiv:1401.4082.  Conditional: K. Sohn, H. Lee and X. Yan (2015), "Learning structured output representation using
    deep conditional generative models".

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
        likelihood: likelihoods.Specification = "bernoulli",
        network: str | tuple[nn.Module, nn.Module] = "mlp",
        hidden: Sequence[int] | None = None,
        activation: str | Callable[[], nn.Module] | None = None,
        param_shape: Sequence[int] | None = None,
        *,
        prior: priors.PriorSpecification = None,
        guide: Callable[..., dist.TorchDistribution] | None = None,
        num_classes: int | None = None,
        context_dim: int | None = None,
    ) -> None:
        super().__init__(event_shape)
        check_count("latent_dim", latent_dim)
        self.latent_dim = int(latent_dim)
        self.likelihood = likelihoods.likelihood(likelihood, self.event_shape, param_shape)
        self.context = Context(num_classes, context_dim)
        self.prior_network = priors.prior(prior, self.latent_dim, self.context.size, self.event_shape)
        self.guide_network = _part("guide", guide)
        self._network_name = network_name(network)
        self.hidden = hidden_sizes(network, hidden, {"mlp": (400, 400), "conv": (32, 64)})
        made, self._activation_name = activation_and_name(activation)
        encoder, *decoder = network if isinstance(network, tuple) else (network, network)
        wanted = "'mlp', 'conv' or a pair (encoder, decoder)"
        if len(decoder) != 1 or isinstance(network, nn.Module):
            raise ValueError(f"network must be {wanted}, got {network!r}")
        build = functools.partial(make_network, activation=made, context=self.context.size, wanted=wanted)
        if guide is None:
            self.encoder = build(encoder, self.event_shape, (2, self.latent_dim), self.hidden)
        out_shape = self.likelihood.param_shape
        self.decoder = build(decoder[0], (self.latent_dim,), out_shape, self.hidden[::-1], decodes=True)
        self.register_buffer("prior_loc", torch.zeros(self.latent_dim))
        self.register_buffer("prior_scale", torch.ones(self.latent_dim))

    @program_method
    def model(self, x: Tensor, *context: Tensor) -> Tensor:
        """Draw ``z`` from the prior and observe ``x`` of shape ``(N, *event_shape)``; returns the decoder's output."""
        vectors = self.context.encode(context, self.prior_loc)
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(*vectors))
            params = self.decoder(z, *vectors)
            pyro.sample(self.obs_name, self.likelihood(params), obs=x)
        return params

    @program_method
    def guide(self, x: Tensor, *context: Tensor) -> Tensor:
        """Draw ``z`` from :math:`q_\\phi(z|x)`."""
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):  # a guide of your own may draw sites of each datum
            return pyro.sample("z", self.posterior(x, *context))

    def prior(self, *vectors: Tensor) -> dist.TorchDistribution:
        """The distribution of a datum's latent, given context vectors."""
        if self.prior_network is None:
            return dist.Normal(self.prior_loc, self.prior_scale, validate_args=False).to_event(1)
        if isinstance(self.prior_network, priors.PosteriorPrior):
            made: Any = self.prior_network.given(self.posterior)
        else:
            made = self.prior_network(*vectors)
        return _latent_distribution("prior", made, self.latent_dim)

    def posterior(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """:math:`q_\\phi(z|x)`, of batch shape ``(N,)``."""
        if self.guide_network is None:
            loc, scale = self.encode(x, *context)
            return dist.Normal(loc, scale, validate_args=False).to_event(1)
        vectors = self.context.encode(context, self.prior_loc)
        return _latent_distribution("guide", self.guide_network(x, *vectors), self.latent_dim)

    def encode(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of :math:`q_\\phi(z|x)`, each of shape ``(N, latent_dim)``.

        :raises ValueError: with a guide of your own, whose distribution :meth:`posterior` gives.
        """
        if self.guide_network is not None:
            raise ValueError("encode is of the Gaussian guide: posterior(x) is the distribution of a guide of your own")
        loc, raw = self.encoder(x, *self.context.encode(context, self.prior_loc)).unbind(-2)
        return loc, softplus(raw)

    def decode(self, z: Tensor, *context: Tensor) -> Tensor:
        """Mean of :math:`p_\\theta(x|z)`: ``batch + (latent_dim,)`` to ``batch + event_shape``."""
        return self.likelihood.mean(self.decoder(z, *self.context.encode(context, self.prior_loc)))

    def check_values(self, x: Tensor) -> None:
        """Refuse values outside the support of the likelihood (grey pixels are no Bernoulli draws)."""
        self.likelihood.check(x)

    def check_context(self, length: int, *context: Any) -> None:
        """Refuse a context that does not go with a batch: missing, of another shape, or a class out of range."""
        self.context.check(context, length)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it, for JSON; an object of your own reads ``"custom"`` and must be given again."""
        return {
            "event_shape": list(self.event_shape),
            "latent_dim": self.latent_dim,
            "likelihood": self.likelihood.config(),
            "network": self._network_name,
            "hidden": list(self.hidden),
            "activation": self._activation_name,
            **self.context.config(),
            "prior": self._prior_config(),
            "guide": None if self.guide_network is None else "custom",
        }

    def _prior_config(self) -> dict[str, Any] | str | None:
        if isinstance(self.prior_network, priors.Prior):
            found = self.prior_network.config()
            return found if found["name"] in priors.PRIORS else "custom"
        return None if self.prior_network is None else "custom"


def _part(argument: str, part: Any) -> Any:
    if part is None or callable(part):
        return part
    raise TypeError(f"{argument} must be None or a callable that gives a distribution, got {type(part).__name__}")


def _latent_distribution(argument: str, made: Any, latent_dim: int) -> Any:
    if not isinstance(made, torch.distributions.Distribution) or tuple(made.event_shape) != (latent_dim,):
        found = tuple(made.event_shape) if isinstance(made, torch.distributions.Distribution) else type(made).__name__
        raise ValueError(f"{argument} must give a distribution of event shape ({latent_dim},), got {found}")
    return made
