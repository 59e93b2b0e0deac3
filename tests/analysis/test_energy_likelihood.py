"""Likelihoods of energy-based programs by their estimated log Z, against exact ones."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyro_dgm.analysis import log_likelihood
from pyro_dgm.infer.mcmc import HMC
from pyro_dgm.infer.smc import AIS
from pyro_dgm.models import DBM, EBM, RBM, LinearGaussian

F64 = torch.float64


class Slope(nn.Module):
    """E(x) = a' x + c: a normal base of unit variance tilted by it is a normal about -a."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.8, -0.5]))

    def forward(self, x):
        return x @ self.a + 7.0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_of_a_tilted_normal(temperature):
    ebm = EBM((2,), Slope(), temperature=temperature)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    found = log_likelihood(ebm, x, method="ais", num_chains=100, num_temperatures=100, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    exact = dist.Normal(-ebm.energy.a.detach().double() / temperature, 1.0).to_event(1).log_prob(x.double())
    off = found.values - exact
    # One log Z for all of them: the same error for each datum.
    assert off.std() < 1e-5
    assert abs(float(off.mean())) < 4 * found.mean_standard_error
    assert 0 < found.mean_standard_error < 0.1
    assert found.mean_standard_error == pytest.approx(float(found.standard_error[0]))
    assert found.shared
    assert "100 chains for log Z" in repr(found)
    again = log_likelihood(ebm, x, method="ais", num_chains=100, num_temperatures=100, seed=1, chunk_size=7)
    torch.testing.assert_close(again.values, found.values)


@pytest.mark.parametrize("make", [lambda: RBM(6, 4), lambda: DBM(5, (3, 2))], ids=["RBM", "DBM"])
def test_of_a_boltzmann_machine(make):
    torch.manual_seed(3)
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.7)
    x = (torch.rand(30, model.event_shape[0]) > 0.5).float()
    exact = log_likelihood(model, x, method="exact")
    found = log_likelihood(model, x, method="ais", num_chains=200, num_temperatures=300, seed=0)
    assert (found.values - exact.values).std() < 1e-6
    assert abs(found.mean - exact.mean) < 4 * found.mean_standard_error
    assert found.mean_standard_error < 0.05
    by_name = log_likelihood(model, {"x": x}, method="ais", num_chains=200, num_temperatures=300, seed=0)
    assert torch.equal(by_name.values, found.values)
    for options in ({"kernel": HMC()}, {"num_steps": 2}):
        with pytest.raises(ValueError, match="sweeps of its own"):
            log_likelihood(model, x, method="ais", **options)


def test_what_cannot_be_estimated_is_said():
    ebm, x = EBM((2,), hidden=(8,)), torch.randn(5, 2)
    for method in ("iwae", "bdmc"):
        with pytest.raises(ValueError, match=r"known up to a constant: method='ais'"):
            log_likelihood(ebm, x, method=method)
    with pytest.raises(ValueError, match="no base"):
        log_likelihood(EBM((2,), hidden=(8,), base=None), x, method="ais")
    with pytest.raises(ValueError, match="initial='guide' is for programs with latent sites"):
        log_likelihood(ebm, x, method="ais", initial="guide")


def test_a_look_at_the_sites_leaves_the_estimate_as_it_was():
    """Of a program with latents nothing is drawn from the global generator before its own draws."""
    model, x = LinearGaussian(event_dim=3, latent_dim=2), torch.randn(4, 3)
    torch.manual_seed(5)
    first = log_likelihood(model, x, num_particles=50)
    torch.manual_seed(5)
    assert torch.equal(log_likelihood(model, x, num_particles=50).values, first.values)
    torch.manual_seed(5)
    torch.rand(1)
    assert not torch.equal(log_likelihood(model, x, num_particles=50).values, first.values)


def test_a_latent_that_cannot_be_drawn_is_the_guides():
    """Of a flat prior on (0, inf) the integral of the likelihood is known: x given s exponential of rate s, 1 / x^2."""

    def model(x):
        s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.sample("x", dist.Exponential(s), obs=x)

    def guide(x):
        pyro.sample("s", dist.Gamma(torch.tensor(1.5, dtype=F64), 1.0))

    x = torch.tensor(2.0, dtype=F64)
    for options in (
        {"method": "iwae", "num_particles": 20_000},
        {"method": "ais", "initial": "guide", "num_chains": 200, "num_temperatures": 50},
    ):
        found = log_likelihood((model, guide), x, seed=0, **options)
        assert abs(found.mean + 2.0 * float(x.log())) < 4 * found.mean_standard_error
    with pytest.raises(ValueError, match="initial='guide'"):
        log_likelihood((model, guide), x, method="ais")


def test_a_target_that_is_not_a_number_is_named_whatever_the_start_validates():
    start = dist.Normal(torch.zeros(2), 3.0, validate_args=True).to_event(1)
    with pytest.raises(ValueError, match="log-density along the path is NaN or infinite"):
        AIS(start, lambda x: x.sum(-1) * float("nan"), num_temperatures=10).forward(num_chains=10, seed=0)
    assert start.base_dist._validate_args  # the user's own is left as it was
    with pytest.raises(ValueError, match="within the support"):
        start.log_prob(torch.full((2,), float("nan")))


def test_a_trajectory_that_runs_off_is_rejected():
    """Ten leapfrog steps this long in a quartic well end at infinity: chains stay, and it is importance sampling."""
    start = dist.Normal(torch.zeros(1, dtype=F64), 3.0, validate_args=True).to_event(1)
    kernel = HMC(step_size=1.0, trajectory_length=10.0, adapt_step_size=False)
    ais = AIS(start, lambda x: -x.pow(4).sum(-1), kernel, num_temperatures=20, tune=False)
    found = ais.forward(num_chains=5000, seed=0)
    exact = torch.lgamma(torch.tensor(1.25, dtype=F64)) + torch.tensor(2.0, dtype=F64).log()
    assert abs(float(found) - float(exact)) < 4 * float(found.standard_error)
