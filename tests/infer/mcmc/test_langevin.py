"""Langevin dynamics: exact moments and the known bias of a finite step, temperature, clipping, the ladder."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.mcmc import MALA, MCMC, AnnealedLangevin, Langevin, PolynomialDecay
from tests.infer.mcmc.targets import COVARIANCE, correlated, exact_draws, moments, walk
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors


def gaussian(u):
    return 0.5 * u["x"].square().reshape(len(u["x"]), -1).sum(-1)


@pytest.mark.parametrize("chain_method, chains, draws", [("vectorized", 200, 600), ("sequential", 4, 1000)])
def test_moments_of_a_correlated_gaussian(chain_method, chains, draws):
    r"""Exact mean, and the covariance of the discretised process, :math:`(P (I - \epsilon^2 P / 4))^{-1}`."""
    step_size = 0.6
    p = torch.linalg.inv(COVARIANCE)
    c = torch.linalg.inv(p @ (torch.eye(2) - step_size**2 / 4 * p))
    expected = torch.stack([*torch.zeros(2), c[0, 0], c[0, 1], c[1, 1]])
    kernel = Langevin(potential_fn=correlated, step_size=step_size)
    mcmc = MCMC(kernel, draws, 100, chains, chain_method, seed=3, progress=False)
    mcmc.run(initial_params={"x": exact_draws(chains, 1)})
    errors = in_standard_errors(moments(mcmc.get_samples(group_by_chain=True)["x"]), expected)
    assert errors.max() < SIGMAS, errors
    stats = mcmc.posterior.sample_stats
    assert bool((stats["acceptance_rate"] == 1).all())
    assert not bool(stats["diverging"].any())


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("step_size", [0.5, 0.9])
def test_bias_of_a_finite_step_is_the_known_one_and_mala_has_none(step_size, temperature):
    r"""A Gaussian's variance comes out as :math:`T / (1 - \epsilon^2 / (4 T))`."""
    start = {"x": torch.zeros(1000, dtype=torch.float64)}
    expected = temperature / (1.0 - step_size**2 / (4.0 * temperature))
    results = {}
    for make, settings in ((Langevin, {}), (MALA, {"adapt_step_size": False, "adapt_mass_matrix": False})):
        kernel = make(potential_fn=gaussian, step_size=step_size, temperature=temperature, **settings)
        mcmc = MCMC(kernel, 200, 100, 1000, seed=5, progress=False)
        mcmc.run(initial_params=start)
        results[make] = mcmc.get_samples(group_by_chain=True)["x"].square()
    assert in_standard_errors(results[Langevin], torch.tensor(expected)).max() < SIGMAS
    assert in_standard_errors(results[MALA], torch.tensor(temperature)).max() < SIGMAS
    assert in_standard_errors(results[Langevin], torch.tensor(temperature)).max() > 1.5 * SIGMAS  # so the bias is seen


def test_a_papers_recipe_has_a_temperature():
    """lambda = 10 and sigma = 0.005: the step it makes is the published one, and its temperature is 1.25e-6."""
    kernel = Langevin.from_recipe(step=10.0, noise=0.005, potential_fn=lambda u: 0.01 * gaussian(u))
    assert kernel.temperature == pytest.approx(1.25e-6)
    kernel.condition()
    state = kernel.init({"x": torch.ones(4, 3, dtype=torch.float64)}, torch.Generator().manual_seed(0))
    noise = kernel.noise(state)
    new, _ = kernel.transition(state, noise)
    by_hand = state.position["x"] - 10.0 * (0.01 * state.position["x"]) + 0.005 * noise["noise x"]
    torch.testing.assert_close(new.position["x"], by_hand)


def test_clipping():
    start = {"x": torch.tensor([[3.0, -4.0], [0.3, 0.4], [0.0, 0.0]]).double()}
    for settings, gradients in (
        ({"max_grad_norm": 1.0}, [[0.6, -0.8], [0.3, 0.4], [0.0, 0.0]]),
        ({"max_grad_value": 0.35}, [[0.35, -0.35], [0.3, 0.35], [0.0, 0.0]]),
    ):
        kernel = Langevin(potential_fn=gaussian, step_size=1.0, **settings)
        kernel.condition()
        state = kernel.init(start, torch.Generator().manual_seed(0))
        new, _ = kernel.transition(state, {"noise x": torch.zeros(3, 2).double()})
        torch.testing.assert_close(new.position["x"], start["x"] - 0.5 * torch.tensor(gradients).double())


def test_schedule():
    """Steps follow it, by the transition's number, and the statistics show them."""
    decay = PolynomialDecay(offset=10.0, exponent=1.0)
    mcmc = MCMC(Langevin(potential_fn=gaussian, step_size=0.2, schedule=decay), 5, 3, 2, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(2, dtype=torch.float64)})
    expected = [0.2 * (1 + t / 10.0) ** -0.5 for t in range(3, 8)]
    assert mcmc.posterior.sample_stats["step_size"][1].tolist() == pytest.approx(expected)


def test_divergence_keeps_the_last_finite_position():
    """One chain climbs into where the potential is NaN, another one's gradient is; others are as without them."""

    def cliff(u):
        x = u["x"]
        edge = torch.sqrt((x + 5.0) * (x > -5.0))  # at 0 its slope is infinity times zero
        return edge + torch.where(x > 5.0, torch.sqrt(5.0 - x), 0.5 * x.square())

    start = torch.tensor([4.99, 0.0, -4.99, 0.5]).double()
    noise = {"noise x": torch.tensor([50.0, 0.1, -50.0, 0.2]).double()}
    kernel = Langevin(potential_fn=cliff, step_size=0.1)
    kernel.condition()
    state = kernel.init({"x": start}, torch.Generator().manual_seed(0))
    new, info = kernel.transition(state, noise)
    assert info.diverging.tolist() == [True, False, True, False]
    assert torch.equal(new.position["x"][[0, 2]], start[[0, 2]])
    assert bool(torch.isfinite(new.potential).all())
    assert bool(torch.isfinite(new.gradient["x"]).all())
    x = start[[1, 3]]
    expected = x - 0.005 * (x + 0.5 / (x + 5.0).sqrt()) + 0.1 * noise["noise x"][[1, 3]]
    torch.testing.assert_close(new.position["x"][[1, 3]], expected)


def test_an_unstable_step_is_reported():
    kernel = Langevin(potential_fn=lambda u: u["x"].pow(4).sum(-1), step_size=2.0)
    mcmc = MCMC(kernel, 20, 0, 8, seed=0, progress=False)
    with pytest.warns(RuntimeWarning, match="draws diverged, on 8 of 8 chains"):
        mcmc.run(initial_params={"x": torch.full((8, 2), 3.0)})
    assert bool(torch.isfinite(mcmc.get_samples()["x"]).all())


def test_a_model_in_both_drivers():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0).double(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = torch.tensor([1.0, 2.0, 3.0]).double()
    post = pyro_dgm.sample_posterior(
        model, x, method=Langevin(step_size=0.2), num_samples=500, num_chains=64, seed=0, progress=False
    )
    bias = 1.0 / (1.0 - 0.2**2 * 4 / 4.0)  # the posterior is N(1.5, 1 / 4)
    assert in_standard_errors(post["mean"], torch.tensor(1.5)).max() < SIGMAS
    assert in_standard_errors((post["mean"] - 1.5).square(), torch.tensor(0.25 * bias)).max() < SIGMAS
    pyro.set_rng_seed(0)
    theirs = pyro.infer.MCMC(Langevin(model, step_size=0.5), 1500, 100, disable_progbar=True)
    theirs.run(x)
    draws = theirs.get_samples(group_by_chain=True)["mean"].reshape(10, 150)
    assert in_standard_errors(draws, torch.tensor(1.5)).max() < SIGMAS


# The ladder


def test_ladder_of_temperatures_is_descended_in_the_warmup():
    temperatures = [4.0, 2.0, 1.0, 0.5]
    kernel = AnnealedLangevin(potential_fn=gaussian, temperatures=temperatures, step_size=0.3)
    assert kernel.temperature == 0.5
    kernel.condition()
    state = kernel.init({"x": torch.zeros(4, 2).double()}, torch.Generator().manual_seed(0))
    assert float(kernel.noise(state)["temperature"]) == 0.5  # without a warm-up: the last rung
    state = kernel.start_warmup(state, 8)
    seen = []
    for _ in range(11):
        noise = kernel.noise(state)
        seen.append((float(noise["temperature"]), float(noise["step size"])))
        state, _ = kernel.step(state)
    assert [t for t, _ in seen] == [4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert [e for _, e in seen] == pytest.approx([0.3 * math.sqrt(t / 0.5) for t, _ in seen])


def test_draws_of_the_ladder_are_the_last_rungs():
    kernel = AnnealedLangevin(potential_fn=gaussian, temperatures=[8.0, 4.0, 2.0], step_size=0.5)
    mcmc = MCMC(kernel, 200, 200, 500, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(500).double()})
    expected = 2.0 / (1 - 0.25 / 8.0)
    assert (
        in_standard_errors(mcmc.get_samples(group_by_chain=True)["x"].square(), torch.tensor(expected)).max() < SIGMAS
    )


def test_noise_levels_give_each_rung_its_own_potential():
    """Every transition uses the gradient of the rung it is on, at steps in proportion to the noise level."""
    levels = [3.0, 1.0, 0.5]

    def blurred(u, sigma):
        return 0.5 * u["x"].square().sum(-1) / (1.0 + sigma**2)

    kernel = AnnealedLangevin(potential_fn=blurred, noise_levels=levels, step_size=0.2)
    kernel.condition()
    state = kernel.init({"x": torch.ones(2, 3).double()}, torch.Generator().manual_seed(0))
    state = kernel.start_warmup(state, 6)
    for t in range(8):
        sigma = levels[min(t // 2, 2)]
        noise = kernel.noise(state)
        before = state.position["x"]
        state, _ = kernel.transition(state, noise)
        state = replace(state, iteration=t + 1)
        step = 0.2 * sigma / 0.5
        by_hand = before - step**2 / 2 * before / (1 + sigma**2) + step * noise["noise x"]
        torch.testing.assert_close(state.position["x"], by_hand)
    # and settles on the last rung's law, with the bias of its step
    mcmc = MCMC(kernel, 200, 90, 500, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(500, 1).double()})
    variance = 1.25 / (1 - 0.04 / (4 * 1.25))
    errors = in_standard_errors(mcmc.get_samples(group_by_chain=True)["x"].square(), torch.tensor([variance]))
    assert errors.max() < SIGMAS


def test_the_ladder_finds_both_modes():
    """Two modes that plain Langevin from one of them never joins."""

    def modes(u):
        return -torch.logaddexp(-0.5 * (u["x"] - 8).square(), -0.5 * (u["x"] + 8).square())

    fractions = {}
    for name, kernel in (
        ("plain", Langevin(potential_fn=modes, step_size=0.5)),
        ("annealed", AnnealedLangevin(potential_fn=modes, step_size=0.5, temperatures=[60.0, 30.0, 10.0, 3.0, 1.0])),
    ):
        mcmc = MCMC(kernel, 10, 2000, 200, seed=0, progress=False)
        mcmc.run(initial_params={"x": torch.full((200,), 8.0)})
        fractions[name] = float((mcmc.get_samples(group_by_chain=True)["x"][:, -1] > 0).double().mean())
    assert fractions["plain"] == 1.0
    assert 0.3 < fractions["annealed"] < 0.7


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Langevin(temperature=0.0), "temperature must be positive"),
        (lambda: Langevin(step_size=math.inf), "step_size must be positive and finite"),
        (lambda: Langevin(max_grad_norm=0.0), "max_grad_norm must be positive"),
        (lambda: Langevin(max_grad_value=-1.0), "max_grad_value must be positive"),
        (lambda: Langevin.from_recipe(step=0.0, noise=0.1), "step must be positive"),
        (lambda: PolynomialDecay(offset=0.0), "offset must be positive"),
        (lambda: PolynomialDecay(exponent=1.5), "exponent must be in"),
        (lambda: AnnealedLangevin(temperatures=[]), "temperatures must be positive finite numbers, at least one"),
        (lambda: AnnealedLangevin(temperatures=[1.0, 2.0]), "temperatures must fall"),
        (lambda: AnnealedLangevin(temperatures=[1.0], noise_levels=[1.0]), "not both"),
        (lambda: AnnealedLangevin(temperatures=[1.0], temperature=2.0), "not both"),
        (lambda: AnnealedLangevin(lambda: None, noise_levels=[1.0]), "noise_levels need potential_fn"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_makes_a_langevin_kernel_and_no_other():
    kernel = Langevin.from_recipe(0.5, 0.1, potential_fn=gaussian, max_grad_norm=3.0, compile=False)
    assert (kernel.temperature, kernel.initial_step_size) == (pytest.approx(0.01), 0.1)
    assert (kernel.potential_fn, kernel.max_grad_norm, kernel.compile) == (gaussian, 3.0, False)
    with pytest.raises(TypeError, match="give AnnealedLangevin step_size=noise and temperature"):
        AnnealedLangevin.from_recipe(0.5, 0.1)


def test_bad_schedules():
    with pytest.raises(TypeError, match="schedule must be a function"):
        Langevin(schedule=0.5)
    kernel = Langevin(potential_fn=gaussian, schedule=lambda t: 1.0 - t)
    with pytest.raises(ValueError, match="schedule must give positive finite factors, got 0.0 at 1"):
        walk(kernel, {"x": torch.zeros(2)}, 3)
