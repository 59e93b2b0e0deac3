"""Our HMC in the place of Pyro's in ``pyro.infer.MCMC``: its constructor's arguments, one by one and together."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import (
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.infer.mcmc.util import initialize_model
from torch.distributions import transforms

from pyro_dgm.infer.mcmc import HMC
from pyro_dgm.infer.mcmc import MCMC as Chains

Y = torch.tensor([0.4, 1.1, -0.3])
#: the posterior of `conjugate` given Y: three data of unit variance, a standard normal prior
MEAN, SD = float(Y.sum()) / 4.0, 0.5


def conjugate(y):
    """A latent of two elements in no plate, as most of Pyro's MCMC examples write them."""
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 1.0))
    pyro.sample("y", dist.Normal(m, 1.0), obs=y[:, None].expand(3, 2))


def positive():
    pyro.sample("x", dist.LogNormal(0.0, 1.0))


def run(kernel, *args, num_samples=400, warmup_steps=150, **settings):
    pyro.set_rng_seed(0)
    mcmc = pyro.infer.MCMC(kernel, num_samples, warmup_steps=warmup_steps, disable_progbar=True, **settings)
    mcmc.run(*args)
    return mcmc


def is_right(mcmc):
    draws, ess = mcmc.get_samples()["m"], mcmc.diagnostics()["m"]["n_eff"]
    assert draws.shape[1:] == (2,)
    assert bool((ess > 40).all())
    assert bool(((draws.mean(0) - MEAN).abs() < 4 * SD / ess.sqrt()).all())
    # Draws that jump from side to side say more of the mean than of the variance.
    assert bool(((draws.std(0) - SD).abs() < 4 * SD / (2.0 * ess.clamp(max=100)).sqrt()).all())


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"step_size": 0.4, "num_steps": 4, "adapt_step_size": False, "adapt_mass_matrix": False},
        {"step_size": 0.4, "num_steps": 4, "adapt_step_size": False, "adapt_mass_matrix": True},
        {"step_size": None, "trajectory_length": 1, "adapt_mass_matrix": False},
        {"step_size": None, "trajectory_length": 1, "full_mass": False},
        {"step_size": None, "trajectory_length": 1, "full_mass": True},
        {"target_accept_prob": 0.9, "min_stepsize": 1e-10, "max_stepsize": 1e10, "max_plate_nesting": 1},
    ],
    ids=lambda s: "-".join(s),
)
def test_settings(settings, jit):
    is_right(run(HMC(conjugate, jit_compile=jit, jit_options={}, ignore_jit_warnings=True, **settings), Y))


def test_step_sizes_stay_within_their_bounds():
    assert run(HMC(conjugate, max_stepsize=0.05, num_steps=2), Y, num_samples=5, warmup_steps=30).diagnostics()[
        "step size"
    ]["chain 0"] == pytest.approx(0.05)
    found = run(HMC(conjugate, min_stepsize=3.0, num_steps=2), Y, num_samples=5, warmup_steps=30)
    assert found.diagnostics()["step size"]["chain 0"] >= 3.0


@pytest.mark.parametrize(
    "strategy",
    [
        *(init_to_feasible, init_to_mean, init_to_median, init_to_sample, init_to_uniform, init_to_value),
        *(init_to_feasible(), init_to_mean(), init_to_median(num_samples=4), init_to_sample()),
        *(init_to_uniform(radius=0.1), init_to_value(values={"x": torch.tensor(3.0)})),
    ],
    ids=["feasible", "mean", "median", "sample", "uniform", "value", "feasible()", "mean()", "median(4)", "sample()"]
    + ["uniform(0.1)", "value(3)"],
)
def test_init_strategy(strategy):
    kernel = HMC(positive, init_strategy=strategy)
    kernel.setup(warmup_steps=10)
    assert kernel.initial_params["x"].shape == ()
    assert bool(torch.isfinite(kernel.initial_params["x"]))
    if getattr(strategy, "keywords", {}).get("values"):
        assert float(kernel.initial_params["x"].exp()) == pytest.approx(3.0)


def gamma_model():
    pyro.sample("g", dist.Gamma(3.0, 2.0))


@pytest.mark.parametrize("shape", [(), (2,)], ids=["scalar", "vector"])
def test_potential_function_of_one_chain(shape):
    """Pyro's: a dict of values without a chain dimension, to a scalar."""

    def potential(params):
        return 0.5 * torch.sum((params["z"] - 5.0) ** 2)

    mcmc = run(HMC(potential_fn=potential), initial_params={"z": torch.zeros(shape)})
    draws, ess = mcmc.get_samples()["z"], mcmc.diagnostics()["z"]["n_eff"]
    assert draws.shape == (400, *shape)
    assert bool(((draws.mean(0) - 5.0).abs() < 4.0 / ess.sqrt()).all())


@pytest.mark.parametrize("chains", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "potential",
    [
        lambda u: (0.5 * u["z"] ** 2).sum(0),
        lambda u: (0.5 * u["z"] ** 2).sum(-1),
        lambda u: 0.5 * u["z"] @ u["z"],
        lambda u: 0.5 * (u["z"][0] ** 2 + u["z"][1] ** 2 + u["z"][2] ** 2),
        lambda u: 0.5 * u["z"].square().sum() * (1.0 if float(u["z"].detach().sum()) > -1e9 else 2.0),
    ],
    ids=["sum first", "sum last", "product", "by element", "branch on values"],
)
def test_kinds_of_potential_functions_over_chains(chains, potential):
    """Of one chain or of all: three elements and one to four chains, so that shapes fit by accident too."""
    kernel = HMC(potential_fn=potential)
    z = torch.randn(chains, 3, generator=torch.Generator().manual_seed(1))
    value, gradient = kernel.condition()({"z": z})
    torch.testing.assert_close(value, 0.5 * z.square().sum(-1))
    torch.testing.assert_close(gradient["z"], z)


def test_potential_and_transforms_of_initialize_model():
    initial, potential, unconstrain, _ = initialize_model(gamma_model)
    kernel = HMC(potential_fn=potential, transforms=unconstrain)
    mcmc = run(kernel, initial_params=initial)
    draws, ess = mcmc.get_samples()["g"], mcmc.diagnostics()["g"]["n_eff"]
    assert bool((draws > 0).all())
    assert abs(float(draws.mean()) - 1.5) < 4 * 0.75**0.5 / float(ess) ** 0.5


def test_transforms_in_our_driver():
    """The draws are constrained, and ``lp`` is the density of the constrained draw."""

    def potential(u):  # a Gamma(3, 2) of g = exp(u), with its Jacobian
        return -(dist.Gamma(3.0, 2.0).log_prob(u["g"].exp()) + u["g"])

    kernel = HMC(potential_fn=potential, transforms={"g": transforms.ExpTransform().inv})
    mcmc = Chains(kernel, 50, 50, num_chains=4, seed=0, progress=False)
    mcmc.run(initial_params={"g": torch.zeros(4)})
    g = mcmc.posterior["g"]
    torch.testing.assert_close(mcmc.posterior.sample_stats["lp"], dist.Gamma(3.0, 2.0).log_prob(g))
    wrong = Chains(HMC(potential_fn=potential, transforms={"h": transforms.ExpTransform().inv}), 5, 5, progress=False)
    with pytest.raises(ValueError, match=r"transforms are for \['h'\]"):
        wrong.run(initial_params={"g": torch.zeros(4)})


def test_transforms_of_a_model():
    """Another way to unconstrained space gives the same posterior, from other coordinates."""
    kernel = HMC(gamma_model, transforms={"g": transforms.ComposeTransform([transforms.SoftplusTransform()]).inv})
    mcmc = run(kernel)
    draws, ess = mcmc.get_samples()["g"], mcmc.diagnostics()["g"]["n_eff"]
    assert abs(float(draws.mean()) - 1.5) < 4 * 0.75**0.5 / float(ess) ** 0.5
    with pytest.raises(ValueError, match=r"transforms are for \['h'\], which are no latents"):
        run(HMC(gamma_model, transforms={"h": transforms.ExpTransform().inv}))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"full_mass": [("a", "b")]}, ValueError, "full_mass must be True"),
        ({"min_stepsize": 2.0, "max_stepsize": 1.0}, ValueError, "min_stepsize must be below"),
        ({"transforms": {"m": 3}}, TypeError, r"transforms\['m'\] must be a torch transform, got int"),
        ({"max_plate_nesting": -1}, ValueError, "max_plate_nesting must be an integer of at least 0, or None, got -1"),
        ({"num_steps": 3, "trajectory_length": 1.0}, ValueError, "num_steps or trajectory_length, not both"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        HMC(conjugate, **settings)
