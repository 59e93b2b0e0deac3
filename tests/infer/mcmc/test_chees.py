"""ChEES: its criterion's derivative in closed form, and what it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import arviz
import pytest
import torch

from pyro_dgm.infer.mcmc import HMC, MCMC, ChEES
from pyro_dgm.infer.mcmc.kernels.chees import halton
from tests.infer.mcmc.targets import walk


def standard(u):
    return 0.5 * u["x"].square().sum(-1)


@pytest.mark.parametrize("length", [0.3, 0.9, 1.3, 2.0])
def test_slope_of_the_criterion(length):
    """A standard normal in D dimensions: u' = u cos T + p sin T, and the criterion is D (sin T)^2 of them."""
    dimensions, chains = 3, 40_000
    kernel = ChEES(potential_fn=standard)
    kernel.condition()
    g = torch.Generator().manual_seed(0)
    start = {"x": torch.randn(chains, dimensions, generator=g, dtype=torch.float64)}
    state = replace(kernel.init(start, g), num_steps=40)
    slopes = []
    for _ in range(10):
        step_size = torch.full((chains,), length / state.num_steps, dtype=torch.float64)
        trajectory = kernel.integrate(state, kernel.noise(state), step_size, state.num_steps)
        slopes.append(kernel._length_gradient(state, trajectory, torch.ones(chains, dtype=torch.float64)))
    slopes = torch.stack(slopes)
    # One dimension alone gives sin 2T; with D of them the squares of all go with the products of each.
    exact = dimensions * math.sin(2 * length)
    assert abs(slopes.mean() - exact) < 4 * slopes.std() / 10**0.5 + 2e-3


def test_a_chain_that_left_the_support_does_not_count():
    kernel = ChEES(potential_fn=standard)
    kernel.condition()
    g = torch.Generator().manual_seed(1)
    state = kernel.init({"x": torch.randn(6, 2, generator=g, dtype=torch.float64)}, g)
    noise = kernel.noise(state)
    trajectory = kernel.integrate(state, noise, (noise["length"] / 3).expand(6), 3)
    acceptance = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    position = trajectory.position["x"].clone()
    position[5] = float("nan")
    broken = replace(trajectory, position={"x": position})
    want = kernel._length_gradient(state, trajectory, acceptance)
    assert torch.isfinite(want)
    torch.testing.assert_close(kernel._length_gradient(state, broken, acceptance), want)


def narrow(u):
    """Pairs of standard normals with correlation 0.995: no diagonal mass helps."""
    a, b = u["x"][..., ::2], u["x"][..., 1::2]
    return 0.25 * ((a + b).square() / 1.995 + (a - b).square() / 0.005).sum(-1)


def test_it_learns_the_length_that_is_best():
    """h is uniform on (0, 1): the mean of (sin hT)^2 is largest where tan 2T = 2T, at T = 2.2467 standard deviations.

    Of the pairs, those are of the sum, 1.995^(1/2) in the units of a coordinate's.
    """
    best = 2.2467
    for potential, scale in ((standard, 1.0), (narrow, 1.995**0.5)):
        g = torch.Generator().manual_seed(2)
        kernel = ChEES(potential_fn=potential)
        state, _ = walk(kernel, {"x": torch.randn(64, 10, generator=g, dtype=torch.float64)}, 1, warmup=500)
        assert math.exp(state.average) == pytest.approx(best * scale, rel=0.2)


def test_more_effective_draws_a_gradient_than_a_quarter_turn():
    import arviz

    found = {}
    quarter = HMC(potential_fn=narrow, trajectory_length=math.pi / 2)
    for name, kernel in (("chees", ChEES(potential_fn=narrow)), ("hmc", quarter)):
        mcmc = MCMC(kernel, 300, 400, 32, seed=0, progress=False)
        g = torch.Generator().manual_seed(5)
        mcmc.run(initial_params={"x": torch.randn(32, 6, generator=g, dtype=torch.float64)})
        x = mcmc.get_samples(group_by_chain=True)["x"]
        ess = min(float(arviz.ess(x[..., j].numpy(), method="mean")) for j in range(6))
        found[name] = ess / float(mcmc.posterior.sample_stats["n_steps"].double().sum() / 32)
    assert found["chees"] > 1.2 * found["hmc"], found


def test_it_wants_several_chains():
    with pytest.raises(ValueError, match="ChEES learns from 2 chains or more advanced together, got num_chains=1"):
        MCMC(ChEES(potential_fn=standard), 10, 10, 1)
    with pytest.raises(ValueError, match="learning_rate must be positive and finite"):
        ChEES(potential_fn=standard, learning_rate=0.0)


def test_lengths_fill_the_interval():
    values = sorted(halton(i) for i in range(1, 64))
    assert values == [i / 64 for i in range(1, 64)]


def test_a_length_below_the_step_size_leaves_no_step_size_without_bounds():
    """One step that is cut to the length is always accepted: told so, dual averaging would let the step size grow."""
    mcmc = MCMC(ChEES(potential_fn=standard, trajectory_length=1e-3), 200, 200, 32, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.randn(32, 10, generator=torch.Generator().manual_seed(0))})
    stats = mcmc.posterior.sample_stats
    assert 0.1 < float(stats["step_size"][0, 0]) < 2.0
    assert all(float(arviz.rhat(mcmc.posterior["x"][..., j].numpy())) < 1.05 for j in range(10))


def test_the_length_waits_until_chains_have_found_the_typical_set():
    """While chains contract towards it the criterion wants trajectories that are ever shorter."""
    kernel = ChEES(potential_fn=lambda u: 50.0 * u["x"].square().sum(-1))
    state = kernel.start((), {}, 0, 32, {"x": 100.0 + torch.zeros(32, 5)})
    state = kernel.start_warmup(state, 200)
    first = state.log_length
    for _ in range(30):
        state = kernel.adapt(*kernel.step(state))
        assert state.log_length == first
    for _ in range(20):
        state = kernel.adapt(*kernel.step(state))
    assert state.log_length != first
