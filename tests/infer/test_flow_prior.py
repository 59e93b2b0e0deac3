"""Inference in models of which a latent has a flow as its prior, against closed forms and importance sampling."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import LowerCholeskyAffine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

import pyro_dgm
from pyro_dgm.distributions import FlowDistribution, FlowReparam
from pyro_dgm.distributions.transforms import Wrapped, make_flow
from pyro_dgm.infer import ELBO, IWAE, DReG

F64 = torch.float64


class Linear:
    """Regression whose weights have a normal prior, as an affine flow: evidence and posterior in closed form."""

    def __init__(self):
        torch.manual_seed(0)
        self.x = torch.randn(6, 3, dtype=F64)
        self.y = torch.randn(6, dtype=F64)
        self.loc = torch.tensor([1.0, -0.5, 0.3], dtype=F64)
        self.tril = torch.tensor([[0.5, 0, 0], [0.4, 0.8, 0], [-0.3, 0.6, 1.2]], dtype=F64)
        self.flow = Wrapped(LowerCholeskyAffine(self.loc, self.tril), 3)
        covariance = self.tril @ self.tril.T
        precision = torch.linalg.inv(covariance) + self.x.T @ self.x
        self.covariance = torch.linalg.inv(precision)
        self.mean = self.covariance @ (torch.linalg.solve(covariance, self.loc) + self.x.T @ self.y)
        marginal = self.x @ covariance @ self.x.T + torch.eye(6, dtype=F64)
        self.log_evidence = dist.MultivariateNormal(self.x @ self.loc, marginal).log_prob(self.y)

    def model(self, x, y):
        base = dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1)
        w = pyro.sample("w", FlowDistribution(self.flow, base))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


class TestClosedForm:
    def test_hmc(self):
        case = Linear()
        for reparam in ({}, {"w": FlowReparam()}):
            post = pyro_dgm.sample_posterior(
                poutine.reparam(case.model, reparam), case.x, case.y,
                method="hmc", num_samples=150, num_chains=32, warmup_steps=150, seed=0, progress=False,
            )  # fmt: skip
            w = post["w"] if "w" in post.samples else case.flow(post["w_base"])
            means = w.mean(1)
            z = (means.mean(0) - case.mean) / (means.std(0) / len(means) ** 0.5)
            assert z.abs().max() < 4
            torch.testing.assert_close(w.flatten(0, 1).T.cov(), case.covariance, rtol=0.1, atol=0.02)

    def test_bounds_at_the_exact_posterior_are_the_evidence(self):
        """In base space the posterior is normal too; there the guide is set to it."""
        case = Linear()
        inverse = torch.linalg.inv(case.tril)
        base_loc = inverse @ (case.mean - case.loc)
        base_tril = torch.linalg.cholesky(inverse @ case.covariance @ inverse.T)

        def guide(x, y):
            pyro.sample("w_base", dist.MultivariateNormal(base_loc, scale_tril=base_tril))

        def plain_guide(x, y):
            pyro.sample("w", dist.MultivariateNormal(case.mean, case.covariance))

        moved = poutine.reparam(case.model, {"w": FlowReparam()})
        for model, q in ((moved, guide), (case.model, plain_guide)):
            for objective in (ELBO(analytic_kl=False), IWAE(3)):
                torch.testing.assert_close(objective.bound(model, q, case.x, case.y), case.log_evidence)


class ThreeLatents(nn.Module):
    """A user's model: one of three latents has a spline flow as its prior."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.flow = make_flow("spline_coupling", 2, num_layers=2, hidden=(4,), num_bins=4).double()
        with torch.no_grad():
            for p in self.flow.parameters():
                p.add_(torch.randn_like(p) * 0.3)
        self.flow.requires_grad_(False)
        self.x = torch.randn(6, 2, dtype=F64)
        # Data of the model's own, so that draws of the prior have weights that can be averaged.
        self.y = self.x @ FlowDistribution(self.flow).sample() + 0.5 + 1.5 * torch.randn(6, dtype=F64)

    def model(self, x, y):
        w = pyro.sample("w", FlowDistribution(self.flow))
        scale = pyro.sample("scale", dist.LogNormal(x.new_tensor(0.3), 0.3))
        b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w + b, scale), obs=y)

    @property
    def moved(self):
        return poutine.reparam(self.model, {"w": FlowReparam()})

    def statistics(self, samples):
        """First moments of all latents, and the second ones of the flow's."""
        w = samples["w"] if "w" in samples else self.flow(samples["w_base"])
        return torch.cat(
            [w, samples["scale"].log()[..., None], samples["b"][..., None], w.square(), w[..., :1] * w[..., 1:]], -1
        )


@functools.cache
def reference():
    """Importance sampling from the prior: means, standard errors, log evidence and its standard error."""
    case = ThreeLatents()
    torch.manual_seed(0)
    n = 400_000
    samples = {
        "w": FlowDistribution(case.flow).sample((n,)),
        "scale": dist.LogNormal(torch.tensor(0.3, dtype=F64), 0.3).sample((n,)),
        "b": torch.randn(n, dtype=F64),
    }
    loc = samples["w"] @ case.x.T + samples["b"][:, None]
    log_weights = dist.Normal(loc, samples["scale"][:, None]).log_prob(case.y).sum(-1)
    return moments(case.statistics(samples), log_weights)


def moments(statistics, log_weights):
    weights = log_weights.softmax(0)[:, None]
    mean = (weights * statistics).sum(0)
    error = (weights.square() * (statistics - mean).square()).sum(0).sqrt()
    n = len(log_weights)
    log_evidence = log_weights.logsumexp(0) - torch.tensor(float(n), dtype=F64).log()
    evidence_error = ((log_weights - log_evidence).exp().var() / n).sqrt()
    assert 1 / weights.square().sum() > 500
    return mean, error, log_evidence, evidence_error


class TestAgainstImportanceSampling:
    @pytest.mark.parametrize("space", ["base", pytest.param("own", marks=pytest.mark.slow)])
    @pytest.mark.parametrize(
        "method",
        [
            "hmc",
            pytest.param("chees", marks=pytest.mark.slow),
            pytest.param("nuts-numpyro", marks=pytest.mark.slow),
        ],
    )
    def test_samplers(self, method, space):
        case = ThreeLatents()
        model = case.moved if space == "base" else case.model
        chains, draws, warmup = (48, 100, 150) if method == "hmc" else (32, 400, 300)
        post = pyro_dgm.sample_posterior(
            model, case.x, case.y,
            method=method, num_samples=draws, num_chains=chains, warmup_steps=warmup, seed=0, progress=False,
        )  # fmt: skip
        means = case.statistics(post.samples).mean(1)
        mean, error, _, _ = reference()
        z = (means.mean(0) - mean) / (means.var(0) / chains + error.square()).sqrt()
        assert z.abs().max() < 4, z

    @pytest.mark.parametrize("space", ["base", pytest.param("own", marks=pytest.mark.slow)])
    @pytest.mark.parametrize("guide", [AutoNormal, pytest.param(AutoMultivariateNormal, marks=pytest.mark.slow)])
    def test_automatic_guides_and_importance_weighted_bounds(self, guide, space):
        """Weights under a fitted guide have the evidence as their mean, and bounds approach it from below."""
        case = ThreeLatents()
        model = case.moved if space == "base" else case.model
        with pyro.settings.context(module_local_params=True):
            program = pyro_dgm.program(model, guide(model, init_scale=0.5))
            program.guide(case.x, case.y)
        program = program.double()
        pyro_dgm.fit(
            program, (case.x, case.y), objective=DReG(8), max_steps=600, batch_size=6, seed=0, progress=False,
            optimizer=functools.partial(torch.optim.Adam, lr=0.02), compile=False,
        )  # fmt: skip
        _, _, log_evidence, evidence_error = reference()
        batch = (case.x, case.y)
        estimate = pyro_dgm.analysis.log_likelihood(program, batch, num_particles=20_000, seed=0)
        total = float(torch.as_tensor(estimate.values))
        both = (evidence_error.square() + torch.as_tensor(estimate.standard_error).square()).sqrt()
        assert abs(total - log_evidence) < 4 * both
        torch.manual_seed(0)
        bounds = [
            torch.stack([o.bound(program.model, program.guide, *batch).detach() for _ in range(40)])
            for o in (ELBO(20), IWAE(200))
        ]
        for bound in bounds:
            assert bound.mean() < log_evidence + 4 * (bound.std() / 40**0.5 + evidence_error)
        assert bounds[1].mean() > bounds[0].mean()
        # A normal guide fits in base space; in the flow's own space its tails do not.
        assert bounds[1].mean() > log_evidence - (0.05 if space == "base" else 0.4)


@pytest.mark.slow
def test_pyros_own_nuts():
    case = Linear()
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    kernel = pyro.infer.NUTS(case.model)
    mcmc = pyro.infer.MCMC(kernel, num_samples=400, warmup_steps=200, disable_progbar=True)
    mcmc.run(case.x, case.y)
    w = mcmc.get_samples()["w"]
    ess = pyro.ops.stats.effective_sample_size(w[None], chain_dim=0, sample_dim=1)
    z = (w.mean(0) - case.mean) / (case.covariance.diagonal() / ess).sqrt()
    assert z.abs().max() < 4
