"""A model for each distribution, whose parameters depend on latents, so that values and all gradients are compared.

Each entry is a function of a positive vector ``p`` of two latents that gives the distribution, and where it is discrete
(or cannot be a latent for another reason) the value that is observed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import AffineTransform, ExpTransform, SigmoidTransform


def t(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def cov(p: Tensor, n: int = 3) -> Tensor:
    """A covariance matrix made of two positive numbers."""
    i = torch.arange(n, dtype=torch.float64)
    return p[0] * torch.exp(-(i[:, None] - i).abs() / p[1]) + 0.5 * torch.eye(n, dtype=torch.float64)


def tril(p: Tensor, n: int = 3) -> Tensor:
    return torch.linalg.cholesky(cov(p, n))


def simplex(p: Tensor, n: int = 3) -> Tensor:
    return torch.softmax(p[0] * torch.arange(n, dtype=torch.float64) / n + p[1].cos(), -1)


def real(p: Tensor, n: int = 3) -> Tensor:
    return p[0] * torch.linspace(-1.0, 1.0, n, dtype=torch.float64) + p[1] - 1.0


Make = Callable[[Tensor], Any]

#: continuous ones: checked as latents, and with a draw observed
CONTINUOUS: dict[str, Make] = {
    "Beta": lambda p: dist.Beta(p[0].expand(3), p[1] + t(0.5, 1.0, 2.0)).to_event(1),
    "Cauchy": lambda p: dist.Cauchy(p[0].expand(3), p[1]).to_event(1),
    "Chi2": lambda p: dist.Chi2(p + 1.0).to_event(1),
    "ContinuousBernoulli": lambda p: dist.ContinuousBernoulli(logits=3.0 * real(p, 4)).to_event(1),
    "Dirichlet": lambda p: dist.Dirichlet(p[0] + p[1] * t(0.5, 1.0, 2.0)),
    "Exponential": lambda p: dist.Exponential(p).to_event(1),
    "FisherSnedecor": lambda p: dist.FisherSnedecor(p[0] + 1.0, p[1] + 2.0),
    "Gamma": lambda p: dist.Gamma(p[0].expand(3), p[1] * t(0.5, 1.0, 2.0)).to_event(1),
    "GeneralizedPareto": lambda p: dist.GeneralizedPareto(t(0.0), p[0], p[1] * t(0.3, 0.6)).to_event(1),
    "Gumbel": lambda p: dist.Gumbel(p[0], p[1]).expand([3]).to_event(1),
    "HalfCauchy": lambda p: dist.HalfCauchy(p).to_event(1),
    "HalfNormal": lambda p: dist.HalfNormal(p).to_event(1),
    "Independent": lambda p: dist.Independent(dist.Normal(real(p).expand(2, 3), p[1]), 2),
    "InverseGamma": lambda p: dist.InverseGamma(p[0] + 1.0, p[1]),
    "Kumaraswamy": lambda p: dist.Kumaraswamy(p[0] + 0.5, p[1] * t(0.5, 1.0, 2.0)).to_event(1),
    "LKJCholesky": lambda p: dist.LKJCholesky(4, p[0]),
    "Laplace": lambda p: dist.Laplace(p[0], p[1]).expand([3]).to_event(1),
    "LogNormal": lambda p: dist.LogNormal(real(p), p[1]).to_event(1),
    "LogisticNormal": lambda p: dist.LogisticNormal(real(p), p[1].expand(3)),
    "LowRankMultivariateNormal": lambda p: dist.LowRankMultivariateNormal(
        real(p, 4), p[0] * torch.ones(4, 2, dtype=torch.float64).tril(), p[1].expand(4)
    ),
    "MixtureSameFamily": lambda p: dist.MixtureSameFamily(
        dist.Categorical(probs=simplex(p)), dist.Normal(real(p), p[1])
    ),
    "MultivariateNormal": lambda p: dist.MultivariateNormal(real(p), covariance_matrix=cov(p)),
    "MultivariateNormal precision": lambda p: dist.MultivariateNormal(real(p), precision_matrix=cov(p)),
    "MultivariateNormal scale_tril": lambda p: dist.MultivariateNormal(real(p), scale_tril=tril(p)).expand([2]),
    "Normal": lambda p: dist.Normal(real(p), p[1]).mask(torch.tensor([True, False, True])).to_event(1),
    "Pareto": lambda p: dist.Pareto(p[0], p[1]).expand([3]).to_event(1),
    "RelaxedBernoulli": lambda p: dist.RelaxedBernoulli(p[0], logits=real(p)).to_event(1),
    "RelaxedOneHotCategorical": lambda p: dist.RelaxedOneHotCategorical(p[0], logits=real(p)),
    "StudentT": lambda p: dist.StudentT(p[0] + 1.0, real(p), p[1]).to_event(1),
    "TransformedDistribution": lambda p: dist.TransformedDistribution(
        dist.Normal(real(p), p[1]), [SigmoidTransform(), AffineTransform(1.0, p[0]), ExpTransform()]
    ).to_event(1),
    "Uniform": lambda p: dist.Uniform(-p[0], p[1]).expand([3]).to_event(1),
    "VonMises": lambda p: dist.VonMises(real(p), 5.0 * p[1]).to_event(1),
    "Weibull": lambda p: dist.Weibull(p[0], p[1] + 0.5).expand([3]).to_event(1),
    "Wishart": lambda p: dist.Wishart(4.5, cov(p)),
    # Pyro's own
    "AffineBeta": lambda p: dist.AffineBeta(p[0] + 0.5, p[1] + 0.5, -1.0, 3.0),
    "AsymmetricLaplace": lambda p: dist.AsymmetricLaplace(p[0], p[1], 1.3).expand([3]).to_event(1),
    "FoldedDistribution": lambda p: dist.FoldedDistribution(dist.Normal(real(p), p[1])).to_event(1),
    "GaussianScaleMixture": lambda p: dist.GaussianScaleMixture(p[0].expand(2), real(p, 3), 0.5 + p[1] * t(1, 2, 3)),
    "LKJ": lambda p: dist.LKJ(3, p[0]),
    "Logistic": lambda p: dist.Logistic(p[0], p[1]).expand([3]).to_event(1),
    "MixtureOfDiagNormals": lambda p: dist.MixtureOfDiagNormals(real(p, 6).reshape(3, 2), p[1].expand(3, 2), real(p)),
    "MixtureOfDiagNormalsSharedCovariance": lambda p: dist.MixtureOfDiagNormalsSharedCovariance(
        real(p, 6).reshape(3, 2), p, real(p)
    ),
    "MultivariateStudentT": lambda p: dist.MultivariateStudentT(p[0] + 1.0, real(p), tril(p)),
    "NanMaskedNormal": lambda p: dist.NanMaskedNormal(real(p), p[1]).to_event(1),
    "OMTMultivariateNormal": lambda p: dist.OMTMultivariateNormal(real(p), tril(p)),
    "ProjectedNormal": lambda p: dist.ProjectedNormal(real(p)),
    "SkewLogistic": lambda p: dist.SkewLogistic(p[0], p[1], 1.3).expand([3]).to_event(1),
    "SoftAsymmetricLaplace": lambda p: dist.SoftAsymmetricLaplace(p[0], p[1] + t(0.5, 1.0), 1.3, 0.7).to_event(1),
    "SoftLaplace": lambda p: dist.SoftLaplace(p[0], p[1]).expand([3]).to_event(1),
    "ZeroInflatedDistribution": lambda p: dist.MaskedMixture(
        torch.tensor([True, False]), dist.Normal(p[0], 1.0).expand([2]), dist.StudentT(3.0, p[1], 1.0).expand([2])
    ).to_event(1),
}

#: with an observed value
OBSERVED: dict[str, tuple[Make, Tensor]] = {
    "Bernoulli": (lambda p: dist.Bernoulli(logits=real(p)).to_event(1), t(0, 1, 1)),
    "Bernoulli probs": (lambda p: dist.Bernoulli(probs=simplex(p)).to_event(1), t(0, 1, 1)),
    "Binomial": (lambda p: dist.Binomial(7, logits=real(p)).to_event(1), t(0, 3, 7)),
    "Binomial counts": (lambda p: dist.Binomial(t(2, 3, 9), probs=simplex(p)).to_event(1), t(0, 3, 7)),
    "Categorical": (lambda p: dist.Categorical(logits=real(p)).expand([2]).to_event(1), torch.tensor([0, 2])),
    "Categorical probs": (lambda p: dist.Categorical(probs=simplex(p)).expand([2]).to_event(1), torch.tensor([0, 2])),
    "Geometric": (lambda p: dist.Geometric(logits=real(p)).to_event(1), t(0, 3, 7)),
    "Multinomial": (lambda p: dist.Multinomial(6, logits=real(p)), t(1, 2, 3)),
    "NegativeBinomial": (lambda p: dist.NegativeBinomial(p[1] + 1.0, logits=real(p)).to_event(1), t(0, 3, 7)),
    "OneHotCategorical": (lambda p: dist.OneHotCategorical(logits=real(p)), t(0, 1, 0)),
    "OneHotCategoricalStraightThrough": (
        lambda p: dist.OneHotCategoricalStraightThrough(probs=simplex(p)),
        t(0, 1, 0),
    ),
    "Poisson": (lambda p: dist.Poisson(p[0] * t(0.5, 1, 2)).to_event(1), t(0, 3, 7)),
    # Pyro's own
    "BetaBinomial": (lambda p: dist.BetaBinomial(p[0], p[1], 9).expand([3]).to_event(1), t(0, 3, 9)),
    "DirichletMultinomial": (lambda p: dist.DirichletMultinomial(p, 6), t(2, 4)),
    "DiscreteHMM": (
        lambda p: dist.DiscreteHMM(real(p, 2), real(p, 4).reshape(2, 2), dist.Normal(real(p, 2), p[1])),
        t(0.5, -1.0, 2.0),
    ),
    "GammaPoisson": (lambda p: dist.GammaPoisson(p[0], p[1]).expand([3]).to_event(1), t(0, 3, 7)),
    "GaussianHMM": (
        lambda p: dist.GaussianHMM(
            dist.MultivariateNormal(real(p, 2), cov(p, 2)),
            torch.eye(2, dtype=torch.float64) * 0.7,
            dist.MultivariateNormal(real(p, 2), cov(p, 2)),
            torch.ones(2, 1, dtype=torch.float64) * p[0],
            dist.Normal(torch.zeros(1, dtype=torch.float64), p[1]).to_event(1),
            duration=3,
        ),
        t(0.5, -1.0, 2.0).reshape(3, 1),
    ),
    "NanMaskedMultivariateNormal": (
        lambda p: dist.NanMaskedMultivariateNormal(real(p), covariance_matrix=cov(p)),
        t(0.3, float("nan"), 1.0),
    ),
    "OrderedLogistic": (lambda p: dist.OrderedLogistic(p[0], real(p).sort().values), torch.tensor(2)),
    "SineBivariateVonMises": (
        lambda p: dist.SineBivariateVonMises(p[0], p[1], p[0] + 1.0, p[1] + 1.0, weighted_correlation=t(0.3)[0]),
        t(0.5, -1.0),
    ),
    "VonMises3D": (lambda p: dist.VonMises3D(real(p)), t(0.6, 0.8, 0.0)),
    "ZeroInflatedPoisson": (lambda p: dist.ZeroInflatedPoisson(p, gate=simplex(p, 2)).to_event(1), t(0, 3)),
    "ZeroInflatedNegativeBinomial": (
        lambda p: dist.ZeroInflatedNegativeBinomial(p, logits=real(p, 2), gate=simplex(p, 2)).to_event(1),
        t(0, 3),
    ),
}


def model_of(make: Make, value: Tensor | None = None) -> Callable[[], None]:
    """The distribution as a latent, or with ``value`` observed, above two positive latents."""

    def model() -> None:
        p = pyro.sample("p", dist.LogNormal(t(0.1, -0.2), 0.3).to_event(1))
        pyro.sample("z", make(p), obs=value)

    return model
