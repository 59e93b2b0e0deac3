"""Where chains begin, and what one chain's bad luck must not do to the others."""

from __future__ import annotations

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import initialization as init
from pyro.nn import PyroModule, PyroSample

import pyro_dgm
from pyro_dgm.capture.unvalidated import unvalidated
from pyro_dgm.infer.mcmc import HMC, MCMC, ChEES
from pyro_dgm.infer.mcmc.initial import far_behind, radius_of
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential


def draw(model, *data, method="hmc", num_samples=20, num_chains=4, seed=0):
    return pyro_dgm.sample_posterior(
        model, *data, method=method, num_samples=num_samples, num_chains=num_chains, seed=seed, progress=False
    )


# Distributions that validate by themselves

EXPANDED = {
    "normal": lambda: dist.Normal(0.0, 1.0).expand([2]),
    "event": lambda: dist.Normal(0.0, 1.0).expand([2]).to_event(1),
    "gamma": lambda: dist.Gamma(2.0, 1.0).expand([2]),
    "matrix": lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).expand([3]),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0).expand([2])
    ).expand([2]),
    "transformed": lambda: dist.LogNormal(0.0, 1.0).expand([2]),
    "masked": lambda: dist.Normal(0.0, 1.0).expand([2]).mask(torch.tensor([True, True])),
    "masked event": lambda: dist.HalfNormal(1.0).expand([2]).mask(True).to_event(1),
    "Pyro's own": lambda: dist.AsymmetricLaplace(0.0, 1.0, 1.0).expand([2]),
    "asked for": lambda: dist.Normal(0.0, 1.0, validate_args=True),
}


@pytest.mark.parametrize("kind", EXPANDED)
def test_validation_is_off_in_every_part(kind):
    law = EXPANDED[kind]()
    value = torch.full(law.shape(), float("nan"))
    fine = law.sample()
    with pyro.validation_enabled(False):
        with pytest.raises(ValueError):
            law.log_prob(value)
        quiet = unvalidated(law)
        assert not bool(torch.isfinite(quiet.log_prob(value)).any())
        torch.testing.assert_close(quiet.log_prob(fine), law.log_prob(fine))
        assert unvalidated(quiet) is quiet
        with pytest.raises(ValueError):  # the user's own distribution is as it was
            law.log_prob(value)


@pytest.mark.parametrize("kind", EXPANDED)
def test_a_position_that_is_no_number_is_that_chains_affair(kind):
    """As a diverging trajectory ends: the density is not finite there, and as ever on the other chains."""
    prior = EXPANDED[kind]()
    potential = ModelPotential(lambda: pyro.sample("z", prior), (), {})
    u = 0.3 * torch.ones(3, *potential.latents["z"].shape)
    u[1] = float("nan")
    values, gradients = potential({"z": u})
    alone, gradient = potential({"z": u[:1]})
    assert torch.isfinite(values).tolist() == [True, False, True]
    torch.testing.assert_close(values[[0, 2]], alone.expand(2))
    torch.testing.assert_close(gradients["z"][:1], gradient["z"])
    assert torch.isfinite(potential.value({"z": u})).tolist() == [True, False, True]


def test_a_bayesian_network():
    """PyroSample priors are made once, outside of the model function."""

    class Network(PyroModule):
        def __init__(self):
            super().__init__()
            self.a = PyroModule[torch.nn.Linear](1, 5)
            self.a.weight = PyroSample(dist.Normal(0.0, 30.0).expand([5, 1]).to_event(2))
            self.a.bias = PyroSample(dist.Normal(0.0, 30.0).expand([5]).to_event(1))
            self.scale = PyroSample(dist.Gamma(2.0, 4.0))

        def forward(self, x, y):
            mean = self.a(x).exp().sum(-1)  # overflows
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, self.scale), obs=y)

    x = torch.linspace(-2.0, 2.0, 9)
    post = draw(Network(), x[:, None], torch.sin(x))
    assert bool(torch.isfinite(post["a.weight"]).all())


# Mixture priors


def with_mixtures(y):
    pyro.sample(
        "z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))
    )
    w = pyro.sample(
        "w", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.tensor([1.0, 5.0]), 1.0))
    )
    pyro.sample("y", dist.Normal(0.0, w), obs=y)


def guide_of_mixtures(y):
    pyro.sample("z", dist.Normal(0.0, 1.5))
    pyro.sample("w", dist.LogNormal(1.0, 1.0))


STRATEGIES = {
    "prior": "prior",
    "median": init.init_to_median,
    "mean": init.init_to_mean,
    "sample": init.init_to_sample,
    "uniform": init.init_to_uniform,
    "feasible": init.init_to_feasible,
    "value": init.init_to_value(values={"w": torch.tensor(2.0)}),
    "generated": init.init_to_generated(generate=lambda: init.init_to_value(values={"z": torch.tensor(0.1)})),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mixture_priors_and_every_strategy(strategy):
    post = draw(with_mixtures, torch.tensor(0.5), method=HMC(init_strategy=STRATEGIES[strategy]), num_samples=5)
    assert bool((post["w"] > 0).all())


@pytest.mark.parametrize("initial", ["prior", "guide"])
def test_annealing_of_mixture_priors(initial):
    program = pyro_dgm.program(with_mixtures, guide_of_mixtures)
    y = torch.tensor(0.5)
    found = pyro_dgm.analysis.log_likelihood(
        program, y, method="ais", initial=initial, num_temperatures=40, num_chains=32, seed=0
    )
    w = torch.linspace(1e-3, 40.0, 400001, dtype=torch.float64)
    prior = torch.stack([dist.Gamma(a, 1.0).log_prob(w) for a in (1.0, 5.0)]).logsumexp(0) - torch.tensor(2.0).log()
    exact = torch.trapezoid((prior + dist.Normal(0.0, w).log_prob(y)).exp(), w).log()
    assert abs(found.mean - float(exact)) < max(4 * found.standard_error, 0.2)


# Starts without a finite density, and absurd ones


def correlations(size):
    def model(y):
        factor = pyro.sample("L", dist.LKJCholesky(size, 2.0))
        with pyro.plate("n", len(y)):
            pyro.sample("Y", dist.MultivariateNormal(torch.zeros(size), scale_tril=factor), obs=y)

    return model


def test_the_radius_shrinks():
    assert [radius_of(a) for a in (-1, 0, 8, 9, 18, 19)] == [2.0, 2.0, 2.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("size", [5, 30])
def test_large_correlation_matrices_have_a_start(size):
    post = draw(correlations(size), torch.randn(40, size), num_samples=2)
    assert post["L"].shape == (4, 2, size, size)


def test_what_is_far_behind():
    position = {"x": torch.zeros(8, 3)}
    usual = torch.tensor([4.0, 6.0, 9.0, 30.0, 200.0, 1000.0, 5000.0, 9000.0])
    assert not bool(far_behind(usual, position).any())
    absurd = usual.clone()
    absurd[2], absurd[5], absurd[6] = 1e9, float("inf"), float("nan")
    assert far_behind(absurd, position).nonzero().flatten().tolist() == [2, 5, 6]
    assert not bool(far_behind(torch.full((8,), 3.0), position).any())
    assert not bool(far_behind(torch.tensor([1.0, 1e30]), {"x": torch.zeros(2, 3)}).any())


def powers(y):
    """As a recursion over 200 steps: beyond one, the density is as good as nothing and its gradient enormous."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones((), dtype=torch.float64)))
    with pyro.plate("t", len(y)):
        pyro.sample("y", dist.Normal(theta ** torch.arange(1, len(y) + 1), scale), obs=y)


@pytest.mark.parametrize("kernel", [HMC, ChEES])
def test_no_chain_is_left_behind(kernel):
    y = 0.7 ** torch.arange(1, 201, dtype=torch.float64) + 0.1 * torch.randn(
        200, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    post = draw(powers, y, method=kernel(), num_samples=150, num_chains=16)
    assert float(arviz.rhat(post["theta"].numpy())) < 1.05
    assert abs(float(post["theta"].mean()) - 0.7) < 0.15
    assert float(post.sample_stats["acceptance_rate"].mean(1).min()) > 0.4


def walled(u):
    """A chain in here accepts nothing at the others' step size."""
    x = u["x"][..., 0]
    return torch.where(x > 50.0, 1e7 * (x - 50.0).square(), 0.5 * u["x"].square().sum(-1))


@pytest.mark.parametrize("restart", [True, False])
def test_a_stuck_chain_is_restarted_by_default_and_in_the_warmup_alone(restart):
    initial = {"x": torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    initial["x"][4, 0] = 51.0
    settings = {} if restart else {"restart_diverged": False}
    kernel = HMC(potential_fn=walled, step_size=0.5, adapt_step_size=False, adapt_mass_matrix=False)
    mcmc = MCMC(kernel, 40, 120, 6, seed=0, progress=False, **settings)
    with pytest.warns(RuntimeWarning, match="stood still in the warm-up" if restart else "hardly moved"):
        mcmc.run(initial_params=initial)
    assert mcmc.posterior.attrs.get("restarted") == ([4] if restart else None)
    without = MCMC(kernel, 40, 0, 6, seed=0, progress=False)
    with pytest.warns(RuntimeWarning, match=r"chains \[4\] hardly moved"):
        without.run(initial_params=initial)
    assert "restarted" not in without.posterior.attrs


@pytest.mark.slow
def test_the_gradient_of_a_long_recursion_is_compiled_in_the_warmup():
    """An ARMA(1, 1) over 120 steps in a loop of Python: by its recursion, and by what it comes to in matrices."""
    steps = 120
    y = 0.5 + torch.randn(steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(0) * 0.1

    def model(y):
        mu, phi, theta = (
            pyro.sample(name, dist.Normal(torch.zeros((), dtype=torch.float64), scale))
            for name, scale in (("mu", 3.0), ("phi", 1.0), ("theta", 0.3))
        )
        errors = [y[0] - mu - phi * mu]
        for i in range(1, len(y)):
            errors.append(y[i] - mu - phi * y[i - 1] - theta * errors[-1])
        with pyro.plate("t", len(y)):
            pyro.sample("e", dist.Normal(torch.stack(errors), 0.3), obs=torch.zeros_like(y))

    post = draw(model, y, num_samples=1500, num_chains=4)
    before = torch.cat([post["mu"].new_zeros(1), y[:-1]])

    def log_density(mu, phi, theta):
        lag = before.clone()
        lag[0] = mu
        eye = torch.eye(steps, dtype=torch.float64)
        errors = torch.linalg.solve(eye + theta * eye[1:].new_ones(steps - 1).diag(-1), y - mu - phi * lag)
        prior = sum(dist.Normal(0.0, s).log_prob(v) for v, s in ((mu, 3.0), (phi, 1.0), (theta, 0.3)))
        return prior + dist.Normal(0.0, 0.3).log_prob(errors).sum()

    for i in (0, 700, 1499):
        values = (post[k][1, i] for k in ("mu", "phi", "theta"))
        assert float(post.sample_stats["lp"][1, i]) == pytest.approx(float(log_density(*values)), rel=1e-6)
    assert max(float(arviz.rhat(post[k].numpy())) for k in post.samples) < 1.02
