"""Gradient kernels on targets that are hard in known ways: correlation, a bend, a neck, bounds."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer.mcmc import HMC, MALA, MCMC, AdjustedMCLMC, ChEES, ParallelTempering
from tests.infer.mcmc.targets import EXACT_MOMENTS, correlated, exact_draws, moments, walk
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors


def dense(**settings):
    return HMC(dense_mass=True, **settings)


#: each with the draws a chain that it takes to mix
KERNELS = {
    "hmc": (HMC, 300),
    "hmc-dense": (dense, 300),
    "mala": (MALA, 900),
    "chees": (ChEES, 300),
    "mclmc-adjusted": (AdjustedMCLMC, 300),
    "parallel-tempering": (lambda **k: ParallelTempering(HMC(**k), num_temperatures=3, max_temperature=4.0), 300),
}
on_all = pytest.mark.parametrize("name", list(KERNELS))


def run(name, potential, dimensions, chains=48, warmup=300, seed=0, factor=1, **options):
    make, draws = KERNELS[name]
    mcmc = MCMC(make(potential_fn=potential, **options), factor * draws, warmup, chains, seed=seed, progress=False)
    g = torch.Generator().manual_seed(seed)
    mcmc.run(initial_params={"x": torch.randn(chains, dimensions, generator=g, dtype=torch.float64)})
    return mcmc.get_samples(group_by_chain=True)["x"]


@on_all
def test_correlated_gaussian(name):
    errors = in_standard_errors(moments(run(name, correlated, 2)), EXACT_MOMENTS)
    assert errors.max() < SIGMAS, errors


def banana(u):
    x, y = u["x"].unbind(-1)
    return 0.5 * x.square() + 0.5 * ((y - 0.5 * (x.square() - 1.0)) / 0.5).square()


@on_all
def test_banana(name):
    """x is N(0, 1), y is N((x^2 - 1) / 2, 1 / 4): E y = 0, E y^2 = 3 / 4, E x^2 y = 1."""
    # Where it is bent most, steps of the usual size diverge, and chains stay away for long.
    options = {"target_accept_prob": 0.95} if name == "hmc" else {}
    draws = run(name, banana, 2, seed=1, **options)
    x, y = draws[..., :1], draws[..., 1:]
    seen = torch.cat([x, y, x * y, x.square(), y.square(), x.square() * y], -1)
    errors = in_standard_errors(seen, torch.tensor([0.0, 0.0, 0.0, 1.0, 0.75, 1.0]))
    assert errors.max() < SIGMAS, errors


def funnel(u):
    """Neal's funnel, v of standard deviation 1.5 and four more dimensions of variance e^v."""
    v, rest = u["x"][..., 0], u["x"][..., 1:]
    return 0.5 * (v / 1.5).square() + (0.5 * rest.square() * (-v).exp()[..., None] + 0.5 * v[..., None]).sum(-1)


@pytest.mark.parametrize(("kernel", "draws"), [(HMC, 2500), pytest.param(ChEES, 700, marks=pytest.mark.slow)])
def test_the_neck_of_a_funnel(kernel, draws):
    """Quantiles of v, the 5 per cent of the neck among them, by steps small enough to go down it."""
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    chains = 32
    g = torch.Generator().manual_seed(3)
    start = {"x": torch.randn(chains, 5, generator=g, dtype=torch.float64)}
    mcmc = MCMC(kernel(potential_fn=funnel, target_accept_prob=0.95), draws, 400, chains, seed=3, progress=False)
    mcmc.run(initial_params=start)
    below = mcmc.get_samples(group_by_chain=True)["x"][..., :1] < 1.5 * torch.special.ndtri(levels)
    errors = in_standard_errors(below.double(), levels)
    assert errors.max() < SIGMAS, errors
    assert abs(float(below[..., 0].double().mean()) - 0.05) < 0.02  # and the errors are no excuse


@pytest.mark.parametrize("name", ["hmc", "chees", "mclmc-adjusted"])
def test_a_funnel_written_without_its_neck(name):
    """v and four standard normals that are scaled by e^(v / 2): the same law, and nothing is hard."""
    draws = run(name, lambda u: 0.5 * u["x"].square().sum(-1), 5, seed=4)
    v = 1.5 * draws[..., :1]
    rest = draws[..., 1:] * (v / 2).exp()
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    below = (v < 1.5 * torch.special.ndtri(levels)).double()
    inside = (rest.abs() < 1.0).double().mean(-1, keepdim=True)
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(dist.Normal(0.0, 1.5).log_prob(grid))
    exact = torch.trapezoid(density * torch.erf((-grid / 2).exp() / math.sqrt(2.0)), grid)
    errors = in_standard_errors(torch.cat([below, inside], -1), torch.cat([levels, exact[None]]))
    assert errors.max() < SIGMAS, errors


@pytest.mark.parametrize("kernel", [ChEES, AdjustedMCLMC])
def test_constrained_supports_have_exact_moments(kernel):
    concentration = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)

    def model():
        pyro.sample("g", dist.Gamma(torch.tensor(3.0, dtype=torch.float64), 2.0))
        pyro.sample("p", dist.Dirichlet(concentration))

    mcmc = MCMC(kernel(model), 400, 300, 32, seed=5, progress=False)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)
    g, p = draws["g"][..., None], draws["p"]
    assert bool((g > 0).all())
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    exact = torch.cat([torch.tensor([1.5, 3.0]).double(), concentration / 9.0])
    errors = in_standard_errors(torch.cat([g, g.square(), p], -1), exact)
    assert errors.max() < SIGMAS, errors


@pytest.mark.parametrize("make", [dense, ChEES, AdjustedMCLMC], ids=["dense", "chees", "mclmc-adjusted"])
@pytest.mark.parametrize("step_size", [0.4, 1.0])
def test_exact_draws_stay_exact(make, step_size):
    """Chains that begin at exact draws are exact draws after some transitions, whatever the step size."""
    kernel = make(potential_fn=correlated, step_size=step_size)
    state, _ = walk(kernel, {"x": exact_draws(40_000, 7)}, 5)
    seen = moments(state.position["x"])
    errors = (seen.mean(0) - EXACT_MOMENTS) / (seen.std(0) / len(seen) ** 0.5)
    assert errors.abs().max() < SIGMAS, errors
