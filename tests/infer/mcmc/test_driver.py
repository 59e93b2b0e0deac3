"""The driver: seeds, layouts, divergences that stay on their chain, interruption, bad input."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer.mcmc import HMC, KERNELS, MALA, MCMC, Kernel


def normal_model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


X = torch.tensor([0.3, -0.2, 1.0])


def gaussian(u):
    return 0.5 * u["x"].square().sum(-1)


def run(kernel, *args, num_samples=20, warmup_steps=20, num_chains=3, seed=0, initial_params=None, **kwargs):
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains, seed=seed, progress=False, **kwargs)
    mcmc.run(*args, initial_params=initial_params)
    return mcmc


@pytest.mark.parametrize(
    ("name", "chain_method"),
    [(n, m) for n in KERNELS for m in ("vectorized", "sequential") if m == "vectorized" or KERNELS[n].min_chains == 1],
)
def test_same_seed_same_draws_and_global_generator_untouched(name, chain_method):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = run(KERNELS[name](normal_model), X, chain_method=chain_method)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    two = run(KERNELS[name](normal_model), X, chain_method=chain_method)
    other = run(KERNELS[name](normal_model), X, chain_method=chain_method, seed=1)
    for site in ("mu", "scale"):
        assert torch.equal(one.posterior[site], two.posterior[site])
        assert not torch.equal(one.posterior[site], other.posterior[site])
    for key, value in one.posterior.sample_stats.items():
        assert torch.equal(value, two.posterior.sample_stats[key]), key


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(1)
    one = run(MALA(normal_model), X, seed=None)
    again = run(MALA(normal_model), X, seed=None)
    torch.manual_seed(1)
    two = run(MALA(normal_model), X, seed=None)
    assert torch.equal(one.posterior["mu"], two.posterior["mu"])
    assert not torch.equal(one.posterior["mu"], again.posterior["mu"])
    assert run(MALA(normal_model), X, seed=one.posterior.attrs["seed"]).posterior["mu"].equal(one.posterior["mu"])


def test_layout_and_statistics():
    mcmc = run(HMC(normal_model), X)
    assert {k: tuple(v.shape) for k, v in mcmc.get_samples(group_by_chain=True).items()} == {
        "mu": (3, 20),
        "scale": (3, 20),
    }
    assert {k: tuple(v.shape) for k, v in mcmc.get_samples().items()} == {"mu": (60,), "scale": (60,)}
    assert bool((mcmc.get_samples()["scale"] > 0).all())
    stats = mcmc.posterior.sample_stats
    assert set(stats) == {"lp", "acceptance_rate", "diverging", "step_size", "n_steps", "energy"}
    assert all(v.shape == (3, 20) for v in stats.values())
    assert stats["diverging"].dtype == torch.bool
    assert stats["n_steps"].dtype == torch.int64
    assert not any(v.requires_grad for v in (*stats.values(), *mcmc.get_samples().values()))
    assert mcmc.posterior.attrs["num_warmup"] == 20
    assert mcmc.posterior.args[0] is X
    assert "mu" in repr(mcmc.summary())
    assert mcmc.summary()["scale"]["mean"] == pytest.approx(float(mcmc.get_samples()["scale"].mean()), rel=1e-5)
    assert set(mcmc.diagnostics()) == {"mu", "scale", "divergences", "acceptance rate"}


@pytest.mark.parametrize("kernel", [HMC, MALA])
def test_parameters_of_the_model_get_no_gradient(kernel):
    net = torch.nn.Linear(1, 1)

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(net(z).squeeze(-1), 1.0), obs=x)

    mcmc = run(kernel(model), torch.tensor(0.5))
    assert all(p.grad is None for p in net.parameters())
    assert not mcmc.posterior["z"].requires_grad
    assert list(pyro.get_param_store()) == []


def cliff(u):
    """A Gaussian whose potential is NaN beyond 50 in the first coordinate."""
    x = u["x"]
    return 0.5 * x.square().sum(-1) + torch.where(x[:, 0] > 50.0, float("nan"), 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: HMC(potential_fn=p, step_size=0.5, num_steps=3, adapt_step_size=False, adapt_mass_matrix=False),
        lambda p: MALA(potential_fn=p, step_size=0.5, adapt_step_size=False, adapt_mass_matrix=False),
    ],
)
def test_a_diverging_chain_leaves_the_others_bit_identical(make):
    start = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    def trap(u):
        # Chain 2 alone sees NaN wherever it goes but at its start.
        value = gaussian(u)
        bad = torch.zeros(6, dtype=torch.bool)
        bad[2] = True
        moved = (u["x"] != start).any(-1)
        return torch.where(bad & moved, float("nan"), value)

    good = run(make(gaussian), num_chains=6, num_samples=30, warmup_steps=0, initial_params={"x": start})
    bad = run(make(trap), num_chains=6, num_samples=30, warmup_steps=0, initial_params={"x": start})
    others = [0, 1, 3, 4, 5]
    assert torch.equal(good.posterior["x"][others], bad.posterior["x"][others])
    for key, value in good.posterior.sample_stats.items():
        assert torch.equal(value[others], bad.posterior.sample_stats[key][others]), key
    stats = bad.posterior.sample_stats
    assert bool(stats["diverging"][2].all())
    assert bool((stats["acceptance_rate"][2] == 0).all())
    assert bool((bad.posterior["x"][2] == start[2]).all())
    assert bool(torch.isfinite(stats["lp"]).all() and torch.isfinite(stats["energy"]).all())
    assert bad.diagnostics()["divergences"]["chain 2"] == list(range(30))
    assert bad.diagnostics()["divergences"]["chain 0"] == []


def test_nan_proposals_during_warmup_do_not_poison_adaptation():
    mcmc = run(
        HMC(potential_fn=cliff, num_steps=3),
        num_chains=8,
        num_samples=50,
        warmup_steps=60,
        initial_params={"x": torch.full((8, 2), 49.0)},
    )
    stats = mcmc.posterior.sample_stats
    assert bool(torch.isfinite(stats["step_size"]).all() and (stats["step_size"] > 1e-3).all())
    assert bool(torch.isfinite(mcmc.posterior["x"]).all())


def test_failed_factorisation_is_one_chains_divergence():
    """torch raises for the whole batch when one covariance is not positive definite."""

    def potential(u):
        x = u["x"]
        eye = torch.eye(2).expand(len(x), 2, 2)
        tril = torch.linalg.cholesky(eye * (3.0 - x[:, :1, None]))
        return 0.5 * x.square().sum(-1) + 0.0 * tril.sum((-1, -2))

    start = torch.zeros(4, 2)
    start[1] = 2.99
    mcmc = run(
        HMC(potential_fn=potential, step_size=1.0, num_steps=2, adapt_step_size=False),
        num_chains=4,
        num_samples=40,
        warmup_steps=0,
        initial_params={"x": start},
    )
    assert bool(mcmc.posterior.sample_stats["diverging"].any())
    assert bool((mcmc.posterior["x"][..., 0] < 3.0).all())
    assert mcmc.posterior["x"][0].unique().numel() > 20


def test_model_with_control_flow_runs_chain_by_chain_and_says_so_once():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = z if float(z.detach()) > 0 else 2 * z
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.warns(RuntimeWarning, match="chain by chain") as record:
        mcmc = run(MALA(model), torch.tensor(1.0), num_samples=5, warmup_steps=5)
    assert len([w for w in record if "chain by chain" in str(w.message)]) == 1
    assert mcmc.posterior["z"].shape == (3, 5)


def test_loop_and_vmap_agree():
    """The same model with and without a branch on a value: equal draws."""

    def branching(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        if float(scale.detach()) < 0:
            raise AssertionError
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    with pytest.warns(RuntimeWarning, match="chain by chain"):
        slow = run(HMC(branching, num_steps=2), X, num_samples=5, warmup_steps=5)
    fast = run(HMC(normal_model, num_steps=2), X, num_samples=5, warmup_steps=5)
    torch.testing.assert_close(slow.posterior["scale"], fast.posterior["scale"], rtol=1e-4, atol=1e-5)


def test_graph_is_the_model():
    """What replaces the model after some evaluations gives its numbers, and tells a failed factorisation."""
    from pyro_dgm.infer.mcmc.potentials.evaluator import GRAPH_AFTER
    from pyro_dgm.infer.mcmc.potentials.model import ModelPotential

    def model(x):
        s = pyro.sample("s", dist.Normal(0.0, 0.1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        covariance = torch.eye(2) * (3.0 - s)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=covariance))
            pyro.sample("x", dist.Normal(z[..., 0], scale), obs=x)

    potential = ModelPotential(model, (X,), {})
    g = torch.Generator().manual_seed(0)
    position = {k: torch.randn(5, *v.shape, generator=g) for k, v in potential.latents.items()}
    first = potential(position)
    for _ in range(GRAPH_AFTER):
        last = potential(position)
    assert len(potential.evaluator.recorded.graphs) == 1
    torch.testing.assert_close(first, last, rtol=1e-5, atol=1e-5)
    other = {k: v + 0.3 for k, v in position.items()}
    fresh = ModelPotential(model, (X,), {})(other)
    torch.testing.assert_close(potential(other), fresh, rtol=1e-5, atol=1e-5)
    position["s"][2] = 3.5
    value, gradient = potential(position)
    assert value.isnan().tolist() == [False, False, True, False, False]
    assert bool(gradient["z"][2].isnan().all())
    torch.testing.assert_close(value[[0, 1, 3, 4]], first[0][[0, 1, 3, 4]])


def test_init_strategies():
    from pyro.infer.autoguide import init_to_median

    def model():
        pyro.sample("z", dist.Normal(100.0, 0.001))

    for strategy in ("prior", init_to_median):
        mcmc = run(
            MALA(model, init_strategy=strategy, step_size=1e-3, adapt_step_size=False), num_samples=1, warmup_steps=0
        )
        assert bool((mcmc.posterior["z"] - 100.0).abs().max() < 0.05)
    mcmc = run(MALA(model, step_size=1e-9, adapt_step_size=False), num_samples=1, warmup_steps=0, num_chains=50)
    z = mcmc.posterior["z"]
    assert bool((z.abs() < 2.01).all())
    assert float(z.std()) > 0.8


@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
def test_interrupt_keeps_the_draws_so_far(chain_method, monkeypatch):
    calls = {"n": 0}
    noise = HMC.noise

    def interrupted(self, state):
        calls["n"] += 1
        if calls["n"] == 20 + 7:
            raise KeyboardInterrupt
        return noise(self, state)

    monkeypatch.setattr(HMC, "noise", interrupted)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        mcmc = run(HMC(normal_model), X, chain_method=chain_method)
    assert mcmc.posterior["mu"].shape == (3 if chain_method == "vectorized" else 1, 6)
    assert mcmc.posterior.sample_stats["lp"].shape == mcmc.posterior["mu"].shape
    assert mcmc.posterior.attrs["interrupted"]


def test_interrupt_in_a_later_chain_keeps_whole_chains(monkeypatch):
    calls = {"n": 0}
    noise = HMC.noise

    def interrupted(self, state):
        calls["n"] += 1
        if calls["n"] == 2 * 40 + 25:
            raise KeyboardInterrupt
        return noise(self, state)

    monkeypatch.setattr(HMC, "noise", interrupted)
    with pytest.warns(RuntimeWarning, match="2 of 3 chains"):
        mcmc = run(HMC(normal_model), X, chain_method="sequential")
    assert mcmc.posterior["mu"].shape == (2, 20)


def test_interrupt_in_the_warmup_is_raised(monkeypatch):
    monkeypatch.setattr(HMC, "noise", lambda self, state: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(HMC(normal_model), X)


# Bad input: the message names the argument, what came, and what is wanted.


def discrete_model():
    k = pyro.sample("k", dist.Categorical(torch.ones(3)))
    pyro.sample("x", dist.Normal(k.float(), 1.0), obs=torch.tensor(0.0))


def subsampled_model(x):
    with pyro.plate("data", len(x), subsample_size=2) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])


def nan_model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("fine", dist.Normal(mu, 1.0), obs=torch.zeros(len(x)))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def observed_model():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def dropout_model():
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    loc = torch.nn.functional.dropout(z, training=True)
    pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=torch.zeros(3))


def growing_model(seen=[]):  # noqa: B006
    seen.append(0)
    for i in range(len(seen)):
        pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    "model, args, message",
    [
        (discrete_model, (), r"\['k'\] are all that there are, and are discrete"),
        (subsampled_model, (X,), r"plate 'data' is subsampled \(2 of 3\)"),
        (nan_model, (torch.tensor([0.0, float("nan"), 1.0]),), r"non-finite log-probability at 'x' \(nan\)"),
        (observed_model, (), "no latent site"),
        (dropout_model, (), r"random numbers outside its latent sites.*\.eval\(\)"),
        (growing_model, (), "latent sites change between runs"),
    ],
)
def test_models_that_mcmc_cannot_use(model, args, message):
    with pytest.raises(ValueError, match=message):
        run(HMC(model), *args)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MCMC(HMC(normal_model), 0), "num_samples must be an integer of at least 1, got 0"),
        (lambda: MCMC(HMC(normal_model), 10, num_chains=0), "num_chains must be an integer of at least 1, got 0"),
        (lambda: MCMC(HMC(normal_model), 10, warmup_steps=-1), "warmup_steps must be .* got -1"),
        (
            lambda: MCMC(HMC(normal_model), 10, chain_method="parallel"),
            "chain_method must be 'vectorized' or 'sequential'",
        ),
        (lambda: HMC(normal_model, potential_fn=gaussian), "model or potential_fn, not both"),
        (lambda: HMC(normal_model, temperature=0.0), "temperature must be positive"),
        (lambda: HMC(normal_model, step_size=-1.0), "step_size must be positive"),
        (lambda: HMC(normal_model, num_steps=3, trajectory_length=1.0), "not both"),
        (lambda: HMC(normal_model, num_steps=0), "num_steps must be an integer of at least 1"),
        (lambda: HMC(normal_model, jitter=1.0), "jitter must be in"),
        (lambda: MALA(normal_model, target_accept_prob=1.0), "target_accept_prob must be in"),
        (lambda: MALA(normal_model, init_strategy="mode"), "init_strategy must be"),
        (lambda: run(HMC()), "needs model= or potential_fn="),
        (lambda: run(HMC(potential_fn=gaussian)), "needs initial_params"),
        (lambda: run(HMC(potential_fn=gaussian), X, initial_params={"x": torch.zeros(3, 2)}), "takes no data"),
        (
            lambda: run(HMC(potential_fn=gaussian), initial_params={"x": torch.zeros(4, 2)}),
            r"num_chains = 3 .*\(4, 2\)",
        ),
        (
            lambda: run(HMC(potential_fn=lambda u: gaussian(u)[:, None]), initial_params={"x": torch.zeros(3, 2)}),
            r"shape \(3,\), got \(3, 1\)",
        ),
        (
            lambda: run(HMC(potential_fn=lambda u: torch.zeros(3)), initial_params={"x": torch.zeros(3, 2)}),
            "differentiably",
        ),
        (
            lambda: run(HMC(potential_fn=cliff), initial_params={"x": torch.full((3, 2), 60.0)}),
            r"chains \[0, 1, 2\] have no finite potential",
        ),
        (
            lambda: run(HMC(normal_model), X, initial_params={"mu": torch.zeros(3)}),
            r"latents \['mu', 'scale'\], got \['mu'\]",
        ),
        (
            lambda: run(HMC(normal_model), X, initial_params={"mu": torch.zeros(3, 1), "scale": torch.zeros(3)}),
            r"'mu'.*\(3, 1\)",
        ),
        (
            lambda: run(
                HMC(normal_model),
                X,
                chain_method="sequential",
                initial_params={"mu": torch.zeros(2), "scale": torch.zeros(2)},
            ),
            "num_chains = 3",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_types():
    with pytest.raises(TypeError, match=r"Pyro's own kernels run in pyro\.infer\.MCMC"):
        MCMC(pyro.infer.NUTS(normal_model), 10)
    with pytest.raises(TypeError, match="model must be callable"):
        HMC(3)
    with pytest.raises(TypeError, match="floating-point"):
        run(HMC(potential_fn=gaussian), initial_params={"x": torch.zeros(3, 2, dtype=torch.int64)})
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        _ = MCMC(HMC(normal_model), 10).posterior
    assert issubclass(HMC, Kernel)


def test_no_warning_on_a_plain_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(HMC(normal_model), X)


@pytest.mark.parametrize("kernel", [HMC, MALA])
@pytest.mark.parametrize("warmup_steps", [5, 20, 50, 90])
def test_a_short_warmup_leaves_a_step_size_that_moves(kernel, warmup_steps):
    """Few updates after the last mass window must not end at the large step size that dual averaging tries first."""
    scales = torch.tensor([1.0, 3.0, 0.3, 1.0, 1.0, 2.0])
    mcmc = MCMC(
        kernel(potential_fn=lambda u: 0.5 * (u["x"] / scales).square().sum(-1)),
        100,
        warmup_steps,
        4,
        seed=0,
        progress=False,
    )
    mcmc.run(initial_params={"x": torch.zeros(4, 6)})
    assert 0.25 < mcmc.posterior.sample_stats["acceptance_rate"].mean() < 0.99


def test_chains_that_begin_in_bad_places_are_not_left_behind():
    """A hierarchy from uniform starts: pooled acceptance alone leaves some chains stuck for good."""

    def model(y):
        location = pyro.sample("location", dist.Normal(0.0, 5.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        with pyro.plate("groups", 6, dim=-2):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 30, dim=-1):
                pyro.sample("y", dist.Normal(location + spread * offset, noise), obs=y)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = torch.randn(6, 1) + 0.3 * torch.randn(6, 30)
    mcmc = MCMC(HMC(model), 50, 100, 16, seed=1, progress=False)
    mcmc.run(y)
    assert mcmc.posterior.sample_stats["acceptance_rate"].mean(1).min() > 0.3


def test_stuck_and_diverging_chains_are_reported():
    def potential(u):
        return 0.5 * u["x"].square().sum(-1)  # leapfrog is unstable beyond a step of 2

    kernel = HMC(potential_fn=potential, step_size=60.0, num_steps=5, adapt_step_size=False, adapt_mass_matrix=False)
    mcmc = MCMC(kernel, 20, 0, 3, seed=0, progress=False)
    with pytest.warns(RuntimeWarning) as caught:
        mcmc.run(initial_params={"x": torch.ones(3, 2)})
    messages = [str(w.message) for w in caught]
    assert any("chains [0, 1, 2] hardly moved" in m for m in messages)
    assert any("60 of 60 draws diverged, on 3 of 3 chains" in m for m in messages)
