"""Kernels against targets whose moments are known."""

from __future__ import annotations

import math

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer.mcmc import HMC, MALA, MCMC
from pyro_dgm.models import LinearGaussian

SIGMAS = 4.0


def in_standard_errors(draws: torch.Tensor, exact: torch.Tensor) -> np.ndarray:
    """Distance of each element's mean from the exact one, in standard errors from chain means.

    Chains are independent, so the spread of their means gives a standard error that assumes nothing of the
    autocorrelation within them; the larger of it and ArviZ's is taken, since either is itself an estimate.
    """
    array = draws.double().reshape(*draws.shape[:2], -1).numpy()
    exact = exact.detach().double().reshape(-1).numpy()
    between = array.mean(1).std(0, ddof=1) / math.sqrt(array.shape[0])
    mean_ess = np.array([float(arviz.ess(array[..., j], method="mean")) for j in range(array.shape[-1])])
    within = array.reshape(-1, array.shape[-1]).std(0, ddof=1) / np.sqrt(mean_ess)
    return np.abs(array.mean((0, 1)) - exact) / np.maximum(between, within)


@pytest.fixture(scope="module")
def linear_gaussian():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LinearGaussian(event_dim=5, latent_dim=2).double()
        return model, torch.randn(3, 5, dtype=torch.float64)


@pytest.mark.parametrize(
    "kernel, draws, chain_method, chains",
    [
        (HMC, 500, "vectorized", 64),
        (MALA, 1200, "vectorized", 64),
        (HMC, 400, "sequential", 3),
    ],
)
def test_linear_gaussian_posterior(linear_gaussian, kernel, draws, chain_method, chains):
    model, x = linear_gaussian
    mcmc = MCMC(kernel(model.model), draws, 300, chains, chain_method=chain_method, seed=1, progress=False)
    mcmc.run(x)
    exact = model.posterior(x)
    z = mcmc.get_samples(group_by_chain=True)["z"]
    assert z.shape == (chains, draws, 3, 2)
    errors = in_standard_errors(z, exact.loc)
    assert errors.max() < SIGMAS, errors
    centred = z - exact.loc.detach()
    second = centred[..., :, None] * centred[..., None, :]
    errors = in_standard_errors(second, exact.covariance_matrix)
    assert errors.max() < SIGMAS, errors
    # Different data are independent a posteriori: cross moments vanish.
    errors = in_standard_errors(centred[:, :, 0, :] * centred[:, :, 1, :], torch.zeros(2))
    assert errors.max() < SIGMAS, errors
    diagnostics = mcmc.diagnostics()
    if chains == 64:
        assert diagnostics["z"]["r_hat"].max() < 1.01
    assert diagnostics["z"]["ess_bulk"].min() > 100
    assert not any(diagnostics["divergences"].values())


def test_lp_is_the_log_joint_of_the_constrained_draw():
    """lp has no Jacobian: against Pyro's own log-joint of each draw."""

    def model(x):
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    x = torch.tensor([0.5, -1.0, 2.0])
    mcmc = MCMC(HMC(model), 20, 50, 2, seed=0, progress=False)
    mcmc.run(x)
    for c, i in ((0, 0), (1, 19)):
        conditioned = pyro.poutine.condition(model, {"scale": mcmc.posterior["scale"][c, i]})
        exact = pyro.poutine.trace(conditioned).get_trace(x).log_prob_sum()
        torch.testing.assert_close(mcmc.posterior.sample_stats["lp"][c, i], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [HMC, MALA])
def test_constrained_supports_have_exact_moments(kernel):
    """Positive, simplex and interval supports, by their moments; one end moves with another latent."""

    def model():
        pyro.sample("gamma", dist.Gamma(torch.tensor(3.0).double(), torch.tensor(2.0).double()))
        pyro.sample("simplex", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0]).double()))
        end = pyro.sample("end", dist.Uniform(torch.tensor(1.0).double(), torch.tensor(2.0).double()))
        pyro.sample("inside", dist.Uniform(torch.zeros(()).double(), end))

    mcmc = MCMC(kernel(model), 1000, 300, 32, seed=2, progress=False)
    mcmc.run()
    s = mcmc.get_samples(group_by_chain=True)
    a = torch.tensor([2.0, 3.0, 4.0]).double()
    exact = {
        "gamma": (1.5, 3.0 / 4 + 1.5**2),
        "simplex": (a / 9, a * (a + 1) / 90),
        "end": (1.5, 1.0 / 12 + 1.5**2),
        "inside": (0.75, (1.0 / 12 + 1.5**2) / 3),  # E[end] / 2 and E[end^2] / 3
    }
    for name, moments in exact.items():
        for power, moment in enumerate(moments, start=1):
            errors = in_standard_errors(s[name].pow(power), torch.as_tensor(moment))
            assert errors.max() < SIGMAS, (name, power, errors)
    assert bool((s["inside"] < s["end"]).all())
    torch.testing.assert_close(s["simplex"].sum(-1), torch.ones(32, 1000).double())


@pytest.mark.parametrize("kernel", [HMC, MALA])
def test_temperature_scales_the_variance(kernel):
    """At temperature T a Gaussian of variance s^2 has variance T s^2."""
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    k = kernel(potential_fn=lambda u: 0.5 * (u["x"] / scale).square().sum(-1), temperature=0.25)
    mcmc = MCMC(k, 800, 300, 32, seed=4, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(32, 2, dtype=torch.float64)})
    x = mcmc.get_samples(group_by_chain=True)["x"]
    errors = in_standard_errors(x.square(), 0.25 * scale.square())
    assert errors.max() < SIGMAS, errors


@pytest.mark.parametrize(
    "kernel", [HMC(step_size=0.9, num_steps=3, adapt_step_size=False), MALA(step_size=0.9, adapt_step_size=False)]
)
def test_stationary_from_exact_draws(kernel):
    """One transition leaves a skewed target (log-gamma) invariant: 20 000 exact draws stay exact.

    The step is coarse, so that the acceptance step matters: without it the variance is off by a fifth.
    """
    shape = 2.0
    n = 20_000
    k = type(kernel)(
        potential_fn=lambda u: -(shape * u["x"] - u["x"].exp()),
        step_size=kernel.initial_step_size,
        adapt_step_size=False,
        **({"num_steps": 3} if type(kernel) is HMC else {}),
    )
    k.condition()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exact = torch.distributions.Gamma(torch.tensor(shape).double(), torch.tensor(1.0).double()).sample((n,)).log()
    state = k.init({"x": exact}, generator)
    rate = 0.0
    for _ in range(5):
        state, info = k.step(state)
        rate = float(info.acceptance_rate.mean())
    assert 0.3 < rate < 0.97
    x = state.position["x"]
    mean = float(torch.digamma(torch.tensor(shape).double()))
    variance = float(torch.polygamma(1, torch.tensor(shape).double()))
    for value, centre in (
        (x, mean),
        ((x - mean).square(), variance),
        (x.exp(), shape),
        (x.exp().square(), shape * (shape + 1)),
    ):
        assert abs(float(value.mean()) - centre) < SIGMAS * float(value.std()) / math.sqrt(n)


def test_jitter_breaks_periodic_orbits():
    """A trajectory of one whole period of a Gaussian gives its start back; jitter makes it mix."""
    fixed, jittered = (
        HMC(
            potential_fn=lambda u: 0.5 * u["x"].square().sum(-1),
            step_size=2 * math.sin(math.pi / 20),
            num_steps=20,
            jitter=j,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        for j in (0.0, 0.25)
    )
    correlations = []
    for kernel in (fixed, jittered):
        mcmc = MCMC(kernel, 200, 0, 16, seed=5, progress=False)
        start = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        mcmc.run(initial_params={"x": start})
        x = mcmc.get_samples(group_by_chain=True)["x"]
        correlations.append(float((x[:, :-1] * x[:, 1:]).mean() / x.square().mean()))
    assert correlations[0] > 0.999
    assert correlations[1] < 0.8


def test_mass_matrix_and_step_size_are_learnt():
    """Scales four orders of magnitude apart: the learnt inverse mass is the variance, acceptance the target."""
    scale = torch.tensor([1e-2, 1.0, 1e2], dtype=torch.float64)
    kernel = HMC(potential_fn=lambda u: 0.5 * (u["x"] / scale).square().sum(-1), num_steps=4)
    kernel.condition()
    state = kernel.init({"x": torch.zeros(32, 3, dtype=torch.float64)}, torch.Generator().manual_seed(0))
    state = kernel.start_warmup(state, 400)
    for _ in range(400):
        state, info = kernel.step(state)
        state = kernel.adapt(state, info)
    state = kernel.finish_warmup(state)
    ratio = state.mass.variances["x"] / scale.square()
    assert bool((ratio > 0.8).all() and (ratio < 1.25).all()), ratio
    rates = []
    for _ in range(200):
        state, info = kernel.step(state)
        rates.append(float(info.acceptance_rate.mean()))
    assert abs(float(np.mean(rates)) - 0.8) < 0.06
