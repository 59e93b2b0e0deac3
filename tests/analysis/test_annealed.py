"""Annealed log-likelihoods, and their bracket, against exact ones."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.analysis import log_likelihood
from pyro_dgm.infer.mcmc import MALA


@pytest.fixture
def problem():
    torch.manual_seed(0)
    m = pyro_dgm.models.LinearGaussian(5, 2).double()
    return m, 1.5 * torch.randn(12, 5, dtype=torch.float64)


@pytest.mark.parametrize("settings", [{}, {"initial": "guide"}, {"kernel": MALA(), "num_steps": 3}])
def test_annealing_agrees_with_exact(problem, settings, rng_unchanged):
    m, x = problem
    m.set_guide_to_posterior()
    exact = m.log_marginal(x).detach()
    with rng_unchanged():
        found = log_likelihood(m, x, method="ais", num_temperatures=100, seed=0, **settings)
    assert found.values.shape == (12,)
    assert found.method == "ais" and found.num_particles == 32
    # a standard error from 32 chains has Student's tails
    assert ((found.values - exact).abs() < 5 * found.standard_error).all()
    assert abs(found.mean - float(exact.mean())) < 4 * found.mean_standard_error
    assert found.mean_standard_error < 0.05
    assert "ais, 32 chains" in repr(found)


def test_the_prior_needs_no_guide_that_fits(problem):
    m, x = problem
    with torch.no_grad():
        m.guide_bias.fill_(50.0)
    exact = m.log_marginal(x).detach()
    found = log_likelihood(m, x, method="ais", num_temperatures=100, seed=0)
    assert abs(found.mean - float(exact.mean())) < 4 * found.mean_standard_error


@pytest.mark.parametrize("initial", ["prior", "guide"])
def test_bracket_holds_the_exact_answer_of_its_data(problem, initial):
    m, x = problem
    m.set_guide_to_posterior()
    found = log_likelihood(m, x.repeat(5, 1), method="bdmc", num_temperatures=60, initial=initial, seed=0)
    simulated = found.data["x"]
    assert simulated.shape == (60, 5)
    exact = m.log_marginal(simulated).detach()
    low, high = found.lower.values - exact, found.upper.values - exact
    assert float(low.mean()) < 3 * float(low.std()) / 60**0.5
    assert float(high.mean()) > -3 * float(high.std()) / 60**0.5
    assert found.gap > -3 * found.gap_standard_error
    assert "simulated from the model" in repr(found)
    assert not torch.equal(simulated, x.repeat(5, 1))


def test_a_coarse_path_opens_the_bracket(problem):
    m, x = problem
    x = x.repeat(5, 1)
    gaps = []
    for temperatures in (3, 300):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gaps.append(log_likelihood(m, x, method="bdmc", num_temperatures=temperatures, num_chains=4, seed=0).gap)
    assert gaps[0] > 3 * abs(gaps[1])


def test_chunks_give_the_same_answer(problem):
    m, x = problem
    exact = m.log_marginal(x).detach()
    found = log_likelihood(m, x, method="ais", num_temperatures=60, chunk_size=100, seed=0)
    assert found.num_particles == 32
    assert abs(found.mean - float(exact.mean())) < 4 * found.mean_standard_error


def test_low_ess_warns(problem):
    m, x = problem
    with torch.no_grad():
        m.log_scale.fill_(-3.0)
    with pytest.warns(RuntimeWarning, match=r"effective sample size of the forward weights is .* data \(under 10 %\)"):
        log_likelihood(m, x, method="ais", num_temperatures=2, seed=0)


def test_plates_within_the_data_and_constrained_latents():
    # Per datum: a rate with a Gamma prior, and three counts of it; the marginal is in closed form.
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0).double(), torch.tensor(2.0).double()))
            with pyro.plate("draws", 3, dim=-1):
                pyro.sample("x", dist.Exponential(rate), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            pyro.sample("rate", dist.Gamma(torch.tensor(6.0).double(), (2 + x.sum(-1, keepdim=True))))

    x = torch.rand(7, 3, dtype=torch.float64) * 2
    exact = math.lgamma(6) - math.lgamma(3) + 3 * math.log(2) - 6 * (2 + x.sum(-1)).log()
    for initial in ("prior", "guide"):
        found = log_likelihood((model, guide), x, method="ais", num_temperatures=100, initial=initial, seed=0)
        assert found.values.shape == (7,)
        assert ((found.values - exact).abs() < 5 * found.standard_error + 1e-6).all()
    assert found.standard_error.max() < 1e-6  # the guide is the posterior


@pytest.mark.parametrize("shifted", [False, True])
def test_latents_in_a_plate_to_the_left_of_the_data(shifted):
    # Without the shift both plates contain every site; with it the data's alone do.
    def model(x):
        with pyro.plate("data", x.shape[-1], dim=-1):
            if shifted:
                pyro.sample("shift", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            with pyro.plate("parts", 2, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand([3]).to_event(1))
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    x = torch.randn(2, 5, dtype=torch.float64)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), 2.0).log_prob(x)
    exact = exact.sum(0) if shifted else exact
    found = log_likelihood((model, lambda x: None), x, method="ais", num_temperatures=60, seed=0)
    assert found.values.shape == exact.shape
    assert ((found.values - exact).abs() < 5 * found.standard_error).all()


def test_a_global_latent_is_joint():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(4, dtype=torch.float64)
    covariance = 2 * torch.eye(4, dtype=torch.float64) + 1
    exact = dist.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance).log_prob(x)
    found = log_likelihood((model, lambda x: None), x, method="ais", num_temperatures=200, num_chains=100, seed=0)
    assert found.values.shape == ()
    assert abs(float(found.values - exact)) < 4 * float(found.standard_error)


def test_bad_input_is_named(problem):
    m, x = problem
    for settings, message in (
        ({"num_chains": 1}, "num_chains must be an integer of at least 2"),
        ({"num_temperatures": 1}, "num_temperatures must be an integer of at least 2"),
        ({"initial": "posterior"}, "initial must be 'prior' or 'guide'"),
        ({"method": "bridge"}, "method must be 'iwae', 'ais', 'bdmc' or 'exact'"),
    ):
        with pytest.raises(ValueError, match=message):
            log_likelihood(m, x, **{"method": "ais", **settings})

    def discrete(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="latent site 'z' is discrete, which annealing by a gradient cannot move"):
        log_likelihood((discrete, lambda x: None), torch.zeros(2), method="ais")

    def observed(x):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="the model has no latent site"):
        log_likelihood((observed, lambda x: None), torch.zeros(()), method="ais")

    def broken(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.full_like(x, math.nan))

    with pytest.raises(ValueError, match="log weights of .* chains are not finite"):
        log_likelihood((broken, lambda x: None), torch.zeros(2), method="ais", num_temperatures=5)


@pytest.mark.filterwarnings("ignore:the program's .* one after another:RuntimeWarning")
@pytest.mark.parametrize(("initial", "alone"), [("prior", False), ("guide", False), ("guide", True)])
def test_a_program_that_does_not_fit_a_plate_of_chains(initial, alone):
    """``X @ w``, with a positive scale: under vmap, and one chain after another where it looks at values."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(6, generator=generator, dtype=torch.float64)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        s = pyro.sample("s", dist.LogNormal(x.new_zeros(()), 0.5))
        if alone and w.sum().item() == 1e9:
            raise AssertionError
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, s), obs=y)

    def guide(x, y):
        pyro.sample("w", dist.Normal(x.new_zeros(2), 0.8).to_event(1))
        pyro.sample("s", dist.LogNormal(x.new_zeros(()), 0.4))

    u = torch.linspace(-2.5, 2.5, 401, dtype=torch.float64)
    grid = dist.Normal(0.0, 0.5).log_prob(u)
    eye = torch.eye(6, dtype=torch.float64)
    log_p = torch.stack([dist.MultivariateNormal(y.new_zeros(6), v * eye + x @ x.T).log_prob(y) for v in (2 * u).exp()])
    exact = torch.logsumexp(grid + log_p, 0) + (u[1] - u[0]).log()
    size = {"num_temperatures": 4, "num_chains": 5} if alone else {"num_temperatures": 60, "num_chains": 64}
    found = log_likelihood((model, guide), (x, y), method="ais", initial=initial, seed=0, **size)
    assert abs(float(found.values) - float(exact)) < 5 * float(found.standard_error)
    assert float(found.standard_error) < (1.5 if alone else 0.1)
