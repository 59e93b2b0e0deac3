"""Random-walk Metropolis: exact moments, no gradient anywhere, zero density apart from faults."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.mcmc import MCMC, RandomWalk
from tests.infer.mcmc.targets import EXACT_MOMENTS, correlated, exact_draws, moments, walk
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors


@pytest.mark.parametrize("chain_method, chains, draws", [("vectorized", 64, 1500), ("sequential", 4, 1000)])
def test_moments_of_a_correlated_gaussian(chain_method, chains, draws):
    kernel = RandomWalk(potential_fn=correlated)
    mcmc = MCMC(kernel, draws, 300, chains, chain_method=chain_method, seed=1, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(chains, 2, dtype=torch.float64)})
    errors = in_standard_errors(moments(mcmc.get_samples(group_by_chain=True)["x"]), EXACT_MOMENTS)
    assert errors.max() < SIGMAS, errors
    if chain_method == "vectorized":
        assert 0.15 < float(mcmc.posterior.sample_stats["acceptance_rate"].mean()) < 0.35
    assert bool((mcmc.posterior.sample_stats["n_steps"] == 0).all())


def test_stationary_from_exact_draws():
    state, _ = walk(RandomWalk(potential_fn=correlated, step_size=0.8), {"x": exact_draws(20000, 0)}, 10)
    m = moments(state.position["x"])
    errors = (m.mean(0) - EXACT_MOMENTS).abs() / (m.std(0) / len(m) ** 0.5)
    assert errors.max() < SIGMAS, errors


def test_temperature_scales_the_variance():
    kernel = RandomWalk(potential_fn=lambda u: 0.5 * u["x"].square(), temperature=4.0)
    mcmc = MCMC(kernel, 1500, 200, 64, seed=2, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(64, dtype=torch.float64)})
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert in_standard_errors(x.square(), torch.tensor(4.0)).max() < SIGMAS
    torch.testing.assert_close(mcmc.posterior.sample_stats["energy"], x.square() / 8)


def test_the_potential_is_never_differentiated_and_may_be_infinite():
    """Uniform on a disc, by a potential that breaks any gradient; zero density is no divergence."""

    def disc(u):
        with torch.no_grad():
            inside = u["x"].square().sum(-1) < 1.0
            return torch.where(inside, 0.0, math.inf).double()

    mcmc = MCMC(RandomWalk(potential_fn=disc), 1000, 200, 64, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(64, 2, dtype=torch.float64)})
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert in_standard_errors(x.square(), torch.full((2,), 0.25)).max() < SIGMAS
    assert not bool(mcmc.posterior.sample_stats["diverging"].any())


def test_nan_is_a_divergence_of_its_chain_alone():
    def holes(u):
        return torch.where(u["x"] > 1.0, math.nan, 0.5 * u["x"].square())

    state, seen = walk(
        RandomWalk(potential_fn=holes, step_size=1.0), {"x": torch.zeros(500)}, 40, after=lambda s, i: i.diverging
    )
    assert bool((state.position["x"] <= 1.0).all())
    assert bool(torch.isfinite(state.potential).all())
    assert 0.05 < float(torch.stack(seen).double().mean()) < 0.5


def test_a_model_with_a_constrained_latent_in_both_drivers():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0).double(), torch.tensor(1.0).double()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([3.0, 1.0, 4.0, 2.0]).double()
    mean, variance = 12.0 / 5.0, 12.0 / 25.0  # Gamma(2 + sum x, 1 + n)
    post = pyro_dgm.sample_posterior(
        model, x, method=RandomWalk(), num_samples=1000, num_chains=16, warmup_steps=300, seed=0, progress=False
    )
    assert in_standard_errors(post["rate"], torch.tensor(mean)).max() < SIGMAS
    assert in_standard_errors((post["rate"] - mean).square(), torch.tensor(variance)).max() < SIGMAS
    pyro.set_rng_seed(0)
    theirs = pyro.infer.MCMC(RandomWalk(model), 800, 300, disable_progbar=True)
    theirs.run(x)
    rate = theirs.get_samples(group_by_chain=True)["rate"]
    assert in_standard_errors(rate.reshape(8, 100), torch.tensor(mean)).max() < SIGMAS


def test_scales_are_learnt():
    """Coordinates of scales 0.01 and 100, with one step size."""
    scale = torch.tensor([0.01, 100.0]).double()
    kernel = RandomWalk(potential_fn=lambda u: 0.5 * (u["x"] / scale).square().sum(-1))
    mcmc = MCMC(kernel, 800, 600, 64, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))})
    x = mcmc.get_samples(group_by_chain=True)["x"] / scale
    assert in_standard_errors(x.square(), torch.ones(2)).max() < SIGMAS
    assert float(mcmc.posterior.sample_stats["acceptance_rate"].mean()) > 0.12
    assert mcmc.diagnostics()["x"]["ess_bulk"].min() > 64 * 800 / 40


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"target_accept_prob": 1.0}, "target_accept_prob must be in"),
        ({"temperature": -1.0}, "temperature must be positive"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomWalk(**settings)


def test_integers_are_no_position():
    with pytest.raises(TypeError, match=r"initial_params\['x'\] must be a floating-point tensor, got torch.int64"):
        MCMC(RandomWalk(potential_fn=correlated), 5, 5, 2, progress=False).run(
            initial_params={"x": torch.zeros(2, 2, dtype=torch.int64)}
        )
