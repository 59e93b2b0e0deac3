"""Marginal log-likelihoods: importance sampled against exact, their errors against their spread."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.analysis import log_likelihood


@pytest.fixture
def problem():
    torch.manual_seed(0)
    m = pyro_dgm.models.LinearGaussian(4, 2).double()
    m.set_guide_to_posterior()
    with torch.no_grad():
        m.guide_bias.add_(0.3)
        m.guide_log_scale.add_(0.2)
    return m, torch.randn(30, 4, dtype=torch.float64)


def test_iwae_agrees_with_exact(problem, rng_unchanged):
    m, x = problem
    exact = log_likelihood(m, x, method="exact")
    assert torch.equal(exact.values, m.log_marginal(x).detach())
    assert exact.mean_standard_error == 0
    assert exact.effective_sample_size is None
    with rng_unchanged():
        estimate = log_likelihood(m, x, num_particles=4000, seed=1)
    assert ((estimate.values - exact.values).abs() < 4.5 * estimate.standard_error).all()
    assert abs(estimate.mean - exact.mean) < 4 * estimate.mean_standard_error
    assert estimate.mean_standard_error < 0.01


def test_standard_error_is_the_spread_over_repetitions(problem):
    m, x = problem
    runs = [log_likelihood(m, x, num_particles=400, seed=s) for s in range(200)]
    values = torch.stack([r.values for r in runs])
    claimed = torch.stack([r.standard_error for r in runs]).square().mean(0).sqrt()
    # 200 repetitions know a standard deviation to 5 per cent, 30 data average that; heavy tails need some room.
    assert abs((values.std(0) / claimed).mean() - 1) < 0.1
    spread = torch.tensor([r.mean for r in runs]).std() / torch.tensor([r.mean_standard_error for r in runs]).mean()
    assert abs(spread - 1) < 0.25


def test_values_by_hand():
    # One latent value: all weights are equal to p(x, z)/q(z), whatever is drawn.
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Delta(torch.zeros(len(x)), log_density=0.0))
            pyro.sample("x", dist.Normal(z, 2.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x)), log_density=0.0))

    x = torch.tensor([0.0, 1.0, -3.0])
    got = log_likelihood((model, guide), x, num_particles=7)
    torch.testing.assert_close(got.values.float(), dist.Normal(0.0, 2.0).log_prob(x))
    assert float(got.standard_error.max()) < 1e-6
    torch.testing.assert_close(got.effective_sample_size, torch.full((3,), 7.0, dtype=torch.float64))


@pytest.mark.parametrize("chunk_size", [7, 29, 30, 61, 1000, None])
def test_chunks_over_particles_and_data(problem, chunk_size):
    m, x = problem
    exact = m.log_marginal(x).detach()
    got = log_likelihood(m, x, num_particles=200, chunk_size=chunk_size, seed=0)
    assert got.values.shape == (30,)
    assert ((got.values - exact).abs() < 5 * got.standard_error + 1e-9).all()
    assert ((got.effective_sample_size > 1) & (got.effective_sample_size <= 200)).all()


def test_subsampling_scale_is_outside():
    m = pyro_dgm.models.LinearGaussian(4, 2).double()
    m.set_guide_to_posterior()
    x = torch.randn(5, 4, dtype=torch.float64)

    def model(x):
        with pyro.poutine.scale(scale=20.0):
            m.model(x)

    def guide(x):
        with pyro.poutine.scale(scale=20.0):
            m.guide(x)

    got = log_likelihood((model, guide), x, num_particles=2000, seed=0)
    assert ((got.values - m.log_marginal(x)).abs() < 5 * got.standard_error).all()


def test_a_global_latent_gives_the_batch():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = torch.randn(5, dtype=torch.float64)

    def guide(x):
        pyro.sample("mu", dist.Normal(x.sum() / 6, 6**-0.5))  # the posterior

    exact = dist.MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double() + 1).log_prob(x)
    got = log_likelihood((model, guide), x, num_particles=50)
    assert got.values.shape == ()
    torch.testing.assert_close(got.values, exact)
    assert math.isnan(got.data_standard_error)


def test_evaluation_mode_and_seed():
    vae = pyro_dgm.models.VAE((6,), 2, hidden=(8,))
    vae.encoder = torch.nn.Sequential(vae.encoder, torch.nn.Dropout(0.9))
    x = torch.ones(4, 6)
    a, b, c = (log_likelihood(vae, x, num_particles=20, seed=s).values for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert vae.training and vae.encoder[1].training


def test_not_finite_is_reported():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pyro.validation_enabled(False), pytest.raises(ValueError, match="not finite for 1 of 3 data"):
        log_likelihood((model, guide), torch.tensor([0.0, float("nan"), 1.0]), num_particles=3)


def test_bad_input(problem):
    m, x = problem
    vae = pyro_dgm.models.VAE((4,), 2, "gaussian", hidden=(8,)).double()
    with pytest.raises(ValueError, match="needs a program with log_prob.*VAE"):
        log_likelihood(vae, x, method="exact")
    with pytest.raises(ValueError, match="method must be"):
        log_likelihood(m, x, method="bridge")
    with pytest.raises(ValueError, match="num_particles must be an integer of at least 2"):
        log_likelihood(m, x, num_particles=1)
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1"):
        log_likelihood(m, x, chunk_size=0)
    with pytest.raises(TypeError, match="program must have"):
        log_likelihood(lambda x: None, x)

    fixed = torch.zeros(30, 4, dtype=torch.float64)  # a program that knows how many data there are

    def model(x):
        with pyro.plate("data", 30):
            z = pyro.sample("z", dist.Normal(fixed, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:1].expand(30, 4))

    def guide(x):
        with pyro.plate("data", 30):
            pyro.sample("z", dist.Normal(fixed, 1.0).to_event(1))

    with pytest.raises(ValueError, match="does not accept part of its data"):
        log_likelihood((model, guide), x, num_particles=3, chunk_size=7)
