"""Factor analysis and probabilistic PCA: the program whose every answer is exact."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.models.base import Family, program_method
from pyro_dgm.ops.arguments import check_choice, check_count

__all__ = ["LinearGaussian"]


class LinearGaussian(Family):
    r"""Linear-Gaussian latent variable model: factor analysis, or probabilistic PCA with one noise scale.

    .. math:: z_n \sim N(0, I_d), \qquad x_n \mid z_n \sim N(W z_n + b, \Psi), \qquad
              p(x) = N(b, W W^\top + \Psi)

    with :math:`\Psi` diagonal.  The marginal, the posterior and the maximum-likelihood fit are in closed form, so it
    is the reference that estimators and samplers are compared with; it is also a good model when data are few.
    The guide is affine in ``x`` with its own parameters, :math:`q(z|x) = N(A x + a, L L^\top)`.

    :param event_dim: number of observed dimensions ``D``.
    :param latent_dim: number of latent dimensions ``d``.
    :param isotropic: one noise scale for all dimensions (probabilistic PCA) instead of one each (factor analysis).
    :param guide_covariance: ``"diagonal"`` (mean field) or ``"full"``; the exact posterior is reachable with
        ``"full"``.
    :raises ValueError: for sizes that are not positive or an unknown ``guide_covariance``.

    Source: M. E. Tipping and C. M. Bishop (1999), "Probabilistic principal component analysis"; D. B. Rubin and
    D. T. Thayer (1982), "EM algorithms for ML factor analysis".

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=5, latent_dim=2).double()
        >>> x = torch.randn(7, 5, dtype=torch.float64)
        >>> m.log_prob(x).shape, m.posterior(x).loc.shape
        (torch.Size([7]), torch.Size([7, 2]))
    """

    def __init__(
        self, event_dim: int, latent_dim: int, isotropic: bool = False, guide_covariance: str = "diagonal"
    ) -> None:
        super().__init__((event_dim,))
        check_count("latent_dim", latent_dim)
        check_choice("guide_covariance", guide_covariance, "diagonal", "full")
        self.event_dim, self.latent_dim = int(event_dim), int(latent_dim)
        self.isotropic, self.guide_covariance = bool(isotropic), guide_covariance
        self.weight = nn.Parameter(torch.randn(event_dim, latent_dim) / math.sqrt(latent_dim))
        self.bias = nn.Parameter(torch.zeros(event_dim))
        self.log_scale = nn.Parameter(torch.zeros(1 if isotropic else event_dim))
        self.guide_weight = nn.Parameter(torch.randn(latent_dim, event_dim) * 0.1)
        self.guide_bias = nn.Parameter(torch.zeros(latent_dim))
        self.guide_log_scale = nn.Parameter(torch.zeros(latent_dim))
        if guide_covariance == "full":
            self.guide_lower = nn.Parameter(torch.zeros(latent_dim, latent_dim))
        self.register_buffer("prior_loc", torch.zeros(latent_dim))
        self.register_buffer("prior_scale", torch.ones(latent_dim))

    @program_method
    def model(self, x: Tensor) -> None:
        """Draw ``z`` and observe ``x`` of shape ``(N, event_dim)``."""
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.prior_loc, self.prior_scale, validate_args=False).to_event(1))
            loc = z @ self.weight.mT + self.bias
            pyro.sample(self.obs_name, dist.Normal(loc, self.noise_scale, validate_args=False).to_event(1), obs=x)

    @program_method
    def guide(self, x: Tensor) -> Tensor:
        """Draw ``z`` from the affine guide."""
        loc = x @ self.guide_weight.mT + self.guide_bias
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            if self.guide_covariance == "full":
                return pyro.sample(
                    "z", dist.MultivariateNormal(loc, scale_tril=self.guide_scale_tril, validate_args=False)
                )
            return pyro.sample("z", dist.Normal(loc, self.guide_log_scale.exp(), validate_args=False).to_event(1))

    @property
    def noise_scale(self) -> Tensor:
        """Standard deviations of the noise, shape ``(event_dim,)``."""
        return self.log_scale.exp().expand(self.event_dim)

    @property
    def guide_scale_tril(self) -> Tensor:
        """Cholesky factor of the guide's covariance, shape ``(latent_dim, latent_dim)``."""
        scale = self.guide_log_scale.exp().diag_embed()
        return scale if self.guide_covariance == "diagonal" else scale + self.guide_lower.tril(-1)

    # Exact answers

    def marginal(self) -> dist.TorchDistribution:
        """:math:`p(x) = N(b, W W^\\top + \\Psi)`."""
        return dist.LowRankMultivariateNormal(self.bias, self.weight, self.noise_scale**2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact :math:`\\log p(x_n)` in nats, shape ``(N,)``."""
        self.check_batch(x)
        return self.marginal().log_prob(x)

    #: the name that it had before
    log_marginal = log_prob

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """Exact :math:`p(z_n|x_n)`, batch shape ``(N,)``."""
        self.check_batch(x)
        scaled = self.weight / self.noise_scale[:, None] ** 2
        eye = torch.eye(self.latent_dim, dtype=x.dtype, device=x.device)
        precision = eye + self.weight.mT @ scaled
        loc = torch.linalg.solve(precision, ((x - self.bias) @ scaled).mT).mT
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    @torch.no_grad()
    def set_guide_to_posterior(self) -> None:
        """Set the guide's parameters to the exact posterior (with ``"diagonal"``: to its best mean-field fit).

        The mean-field optimum keeps the mean and takes the reciprocal of the precision's diagonal as variance.
        """
        scaled = self.weight / self.noise_scale[:, None] ** 2
        precision = torch.eye(self.latent_dim, dtype=scaled.dtype, device=scaled.device) + self.weight.mT @ scaled
        self.guide_weight.copy_(torch.linalg.solve(precision, scaled.mT))
        self.guide_bias.copy_(-self.guide_weight @ self.bias)
        if self.guide_covariance == "full":
            tril = torch.linalg.cholesky(torch.linalg.inv(precision))
            self.guide_log_scale.copy_(tril.diagonal().log())
            self.guide_lower.copy_(tril.tril(-1))
        else:
            self.guide_log_scale.copy_(-0.5 * precision.diagonal().log())

    @torch.no_grad()
    def fit_em(self, x: Tensor, max_iterations: int = 1000, tolerance: float = 1e-8) -> list[float]:
        """Fit ``W``, ``b`` and the noise by expectation-maximisation from the present values; the guide is not touched.

        :param x: data, shape ``(N, event_dim)``, ``N >= 2``.
        :param max_iterations: most EM iterations.
        :param tolerance: stop when the mean log-likelihood gains less than this (nats per datum).
        :returns: mean :math:`\\log p(x)` per datum before the first and after each iteration; it never falls.
        :raises ValueError: for fewer than two data or a non-positive ``max_iterations``.
        """
        self.check_batch(x)
        n = x.shape[0]
        if n < 2 or max_iterations < 1:
            raise ValueError(f"fit_em needs at least 2 data and 1 iteration, got {n} and {max_iterations}")
        self.bias.copy_(x.mean(0))
        centred = x - self.bias
        second = centred.square().mean(0)
        history = [float(self.log_prob(x).mean())]
        for _ in range(max_iterations):
            post = self.posterior(x)
            loc = post.loc
            outer = n * post.covariance_matrix[0] + loc.mT @ loc
            cross = centred.mT @ loc
            weight = torch.linalg.solve(outer, cross.mT).mT
            variance = second - (weight * cross).sum(-1) / n
            self.weight.copy_(weight)
            self.log_scale.copy_(0.5 * (variance.mean()[None] if self.isotropic else variance).log())
            history.append(float(self.log_prob(x).mean()))
            if history[-1] - history[-2] < tolerance:
                break
        return history

    def config(self) -> dict[str, Any]:
        return {
            "event_dim": self.event_dim,
            "latent_dim": self.latent_dim,
            "isotropic": self.isotropic,
            "guide_covariance": self.guide_covariance,
        }
