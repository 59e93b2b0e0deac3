"""The latent variable model whose prior is an energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.distributions import likelihoods
from pyro_dgm.distributions.chains import run_chains
from pyro_dgm.distributions.energy import EnergyDistribution
from pyro_dgm.models.base import Family, program_method
from pyro_dgm.nn import MLP
from pyro_dgm.nn.build import hidden_sizes, make_network, network_name
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.random_state import seeded

__all__ = ["LatentEBM"]


class LatentEBM(Family):
    r"""Latent-space energy-based model: a decoder, and a prior that a small energy network tilts away from the normal.

    .. math:: p_\alpha(z) = \frac{N(z; 0, I) \, e^{-E_\alpha(z) / T}}{Z(\alpha)}, \qquad
              x_n \mid z_n \sim p_\beta(x \mid d_\beta(z_n))

    The prior learns where the latents of data are, so that its draws decode to data.  In all else the model is that of
    a :class:`VAE`.  There is no encoder: the posterior is reached by short Langevin chains, in training
    (:class:`~pyro_dgm.infer.ShortRunML`) and after (:meth:`posterior`), or by :func:`pyro_dgm.sample_posterior`
    with HMC.  An ELBO refuses the program while its prior is trained.

    :param event_shape: shape of one datum, of any rank.
    :param latent_dim: number of latent dimensions.
    :param likelihood: ``"bernoulli"``, ``"gaussian"``, a :class:`~pyro_dgm.distributions.Likelihood`, or a callable, as
        for :class:`VAE`; the paper's is Gaussian with standard deviation 0.3, ``GaussianLikelihood(shape, 0.3)``.
    :param network: ``"mlp"``, ``"conv"`` (image event shapes), or a module, the decoder, from ``batch + (latent_dim,)``
        to ``batch + param_shape``.
    :param hidden: hidden widths of the decoder; channels for ``"conv"``.
    :param prior_hidden: hidden widths of the energy network.
    :param temperature: :math:`T`, of the prior's energy.
    :param step_size: of the prior's Langevin steps.
    :param num_steps: of the prior's chains.
    :param kernel: of :mod:`pyro_dgm.infer.mcmc`, for the prior instead of Langevin steps.
    :param param_shape: event shape of the decoder's output when ``likelihood`` is a callable.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: B. Pang, T. Han, E. Nijkamp, S.-C. Zhu and Y. N. Wu (2020), "Learning latent space energy-based prior
    model", arXiv:2006.08205.

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> program = pyro_dgm.models.LatentEBM(event_shape=(8, 8), latent_dim=2, hidden=(32,), likelihood="bernoulli")
        >>> x = torch.rand(20, 8, 8).round()
        >>> run = pyro_dgm.fit(program, x, objective=pyro_dgm.infer.ShortRunML(), epochs=1, progress=False)
        >>> program.sample(3, seed=0).shape, program.posterior(x, seed=0).shape
        (torch.Size([3, 8, 8]), torch.Size([20, 2]))
    """

    normalized = False
    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 20,
        likelihood: likelihoods.Specification = "gaussian",
        network: str | nn.Module = "mlp",
        hidden: Sequence[int] | None = None,
        *,
        prior_hidden: Sequence[int] = (200, 200),
        temperature: float = 1.0,
        step_size: float = 0.4,
        num_steps: int = 60,
        kernel: Any = None,
        param_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(event_shape)
        check_count("latent_dim", latent_dim)
        self.latent_dim = latent_dim
        self.likelihood = likelihoods.likelihood(likelihood, self.event_shape, param_shape)
        self._network_name = network_name(network)
        self.hidden = hidden_sizes(network, hidden, {"mlp": (400, 400), "conv": (64, 32)})
        out_shape = self.likelihood.param_shape
        self.decoder = make_network(network, (latent_dim,), out_shape, self.hidden, nn.SiLU, decodes=True)
        self.prior_hidden = tuple(prior_hidden)
        self.energy = MLP((latent_dim,), (), self.prior_hidden, activation=nn.SiLU)
        self.temperature, self.step_size = float(temperature), float(step_size)
        self.num_steps, self.kernel = num_steps, kernel
        self.register_buffer("prior_loc", torch.zeros(latent_dim))
        self.register_buffer("prior_scale", torch.ones(latent_dim))
        self.prior()  # checks its arguments

    def prior(self) -> EnergyDistribution:
        """The prior of one datum's latent at the present parameters."""
        return EnergyDistribution(
            self.energy,
            base=dist.Normal(self.prior_loc, self.prior_scale, validate_args=False).to_event(1),
            temperature=self.temperature,
            step_size=self.step_size,
            num_steps=self.num_steps,
            kernel=self.kernel,
            validate_args=False,
        )

    @program_method
    def model(self, x: Tensor) -> Tensor:
        """Draw ``z`` from the prior and observe ``x`` of shape ``(N, *event_shape)``; returns the decoder's output."""
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            params = self.decoder(z)
            pyro.sample(self.obs_name, self.likelihood(params), obs=x)
        return params

    @program_method
    def guide(self, x: Tensor) -> None:
        """There is none: the posterior is reached by chains."""

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        r""":math:`\log p(x, z) + \log Z(\alpha)`, nats, ``(N,)``: low where a datum is unlike the data trained on.

        :param x: ``(N, *event_shape)``.
        :param z: ``(N, latent_dim)``.
        """
        return self.prior().log_prob(z) + self.likelihood(self.decoder(z)).log_prob(x)

    @torch.no_grad()
    def posterior(
        self, x: Tensor, num_steps: int = 20, step_size: float = 0.1, kernel: Any = None, seed: int | None = None
    ) -> Tensor:
        r"""Latents given data, ``(N, latent_dim)``: the ends of short chains from the prior's base, one for each datum.

        They are made as in training, and are not draws of the exact posterior: :func:`pyro_dgm.sample_posterior` gives
        those.

        :param x: ``(N, *event_shape)``.
        :param num_steps: transitions.
        :param step_size: :math:`\epsilon` of Langevin steps.
        :param kernel: of :mod:`pyro_dgm.infer.mcmc`, instead of Langevin steps.
        :param seed: of the chains; without it they take (and advance) torch's global generator.
        """
        self.check_batch(x)
        check_count("num_steps", num_steps)
        with seeded(seed, x.device):
            start = self.prior().initial_state(len(x))
            return run_chains(
                lambda z: self.log_joint(x, z), start, num_steps, step_size=step_size, kernel=kernel, what="posterior"
            )

    @torch.no_grad()
    def sample_prior(self, num_samples: int, num_steps: int | None = None, seed: int | None = None) -> Tensor:
        """Latents at the end of short chains for the prior, ``(num_samples, latent_dim)``.

        :param num_samples: how many.
        :param num_steps: transitions; by default as many as in training.
        :param seed: of the chains; without it they take (and advance) torch's global generator.
        """
        check_count("num_samples", num_samples)
        with seeded(seed, self._like.device):
            law = self.prior()
            return law.mcmc_step(law.initial_state(num_samples), num_steps or self.num_steps)

    @torch.no_grad()
    def sample(self, num_samples: int, *context: Any, num_steps: int | None = None, seed: int | None = None) -> Tensor:
        """New data: means of the likelihood at latents of :meth:`sample_prior`, ``(num_samples, *event_shape)``."""
        self.check_context(num_samples, *context)
        return self.decode(self.sample_prior(num_samples, num_steps, seed))

    def decode(self, z: Tensor) -> Tensor:
        r"""Mean of :math:`p_\beta(x|z)`: ``batch + (latent_dim,)`` to ``batch + event_shape``."""
        return self.likelihood.mean(self.decoder(z))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, **options: Any) -> Tensor:
        """Means of the likelihood at latents of :meth:`posterior`, whose arguments it takes."""
        return self.decode(self.posterior(x, **options))

    def check_values(self, x: Tensor) -> None:
        """Refuse values outside the support of the likelihood."""
        self.likelihood.check(x)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it, for JSON; an object of your own reads ``"custom"`` and must be given again."""
        return {
            "event_shape": list(self.event_shape),
            "latent_dim": self.latent_dim,
            "likelihood": self.likelihood.config(),
            "network": self._network_name,
            "hidden": list(self.hidden),
            "prior_hidden": list(self.prior_hidden),
            "temperature": self.temperature,
            "step_size": self.step_size,
            "num_steps": self.num_steps,
            "kernel": None if self.kernel is None else "custom",
        }
