"""What a run keeps and how it is carried out: thinning, sums in place of draws, groups of chains, restarts, graphs."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from pyro_dgm.infer.mcmc import HMC, MALA, MCMC, Langevin
from pyro_dgm.infer.mcmc.diagnostics import nested_r_hat
from pyro_dgm.infer.mcmc.recorded import Transitions

DTYPE = torch.float64


def potential(u):
    return 0.5 * (u["a"].square().sum(-1) + (u["b"] / 2.0).square())


def start(chains=8):
    g = torch.Generator().manual_seed(0)
    return {"a": torch.randn(chains, 3, generator=g, dtype=DTYPE), "b": torch.randn(chains, generator=g, dtype=DTYPE)}


def run(kernel=None, draws=120, chains=8, initial=None, **settings):
    kernel = HMC(potential_fn=potential) if kernel is None else kernel
    mcmc = MCMC(kernel, draws, 40, chains, seed=3, progress=False, **settings)
    mcmc.run(initial_params=start(chains) if initial is None else initial)
    return mcmc


@pytest.mark.parametrize("thinning", [3, 7])
def test_thinned_draws_are_every_nth(thinning):
    whole, thinned = run(), run(thinning=thinning)
    for name, draws in whole.posterior.samples.items():
        assert torch.equal(thinned.posterior[name], draws[:, thinning - 1 :: thinning])
    for name, values in whole.posterior.sample_stats.items():
        assert torch.equal(thinned.posterior.sample_stats[name], values[:, thinning - 1 :: thinning]), name


@pytest.mark.parametrize("thinning", [1, 4])
def test_sums_are_those_of_the_draws(thinning):
    kept, summed = run(thinning=thinning), run(thinning=thinning, keep_draws=False)
    for name, draws in kept.posterior.samples.items():
        flat = draws.flatten(0, 1)
        torch.testing.assert_close(summed.moments.mean[name], flat.mean(0))
        torch.testing.assert_close(summed.moments.variance[name], flat.var(0))
        n = draws.shape[1] // 2
        halves = torch.cat([draws[:, :n], draws[:, n : 2 * n]])
        r_hat = ((n - 1) / n + halves.mean(1).var(0) / halves.var(1).mean(0)).sqrt()
        torch.testing.assert_close(summed.moments.r_hat[name], r_hat)
    diagnostics = summed.diagnostics()
    acceptance = kept.posterior.sample_stats["acceptance_rate"].mean(1)
    if thinning == 1:
        got = torch.tensor(list(diagnostics["acceptance rate"].values()), dtype=DTYPE)
        torch.testing.assert_close(got, acceptance)
    assert set(summed.summary()["b"]) == {"mean", "sd", "ess_mean", "r_hat"}
    with pytest.raises(RuntimeError, match="draws were not kept"):
        _ = summed.posterior


def test_effective_sample_size_by_batch_means():
    """Independent draws are worth themselves; those of MALA fewer."""
    summed = run(MALA(potential_fn=potential, adapt_step_size=False, step_size=0.5), draws=2500, keep_draws=False)
    assert 0.005 < float(summed.moments.ess["b"]) / (8 * 2500) < 0.2
    from pyro_dgm.infer.mcmc.moments import Moments

    moments = Moments(2500)
    g = torch.Generator().manual_seed(1)
    for _ in range(25):
        moments.update({"x": torch.randn(8, 100, generator=g)})
    assert 0.8 < float(moments.ess["x"]) / (8 * 2500) < 1.25
    assert abs(float(moments.r_hat["x"]) - 1.0) < 0.01


def test_a_long_run_without_draws_holds_no_draws():
    """The tensors that a run leaves behind do not grow with its length."""

    def held(mcmc):
        parts = [*mcmc.moments._halves, mcmc.moments._batches]
        found = [v for part in parts for r in part.values() for v in (r.mean, r.squares)]
        return sum(v.numel() for v in [*found, *mcmc.moments._open.values(), *mcmc._totals.values()])

    short, long = (run(draws=n, keep_draws=False) for n in (100, 1000))
    assert held(long) <= held(short) + 8 * 4  # a batch that is not closed, at most


def test_chains_are_evaluated_in_groups():
    sizes = set()

    def counted(u):
        sizes.add(len(u["b"]))
        return potential(u)

    whole = run(HMC(potential_fn=potential))
    grouped = run(HMC(potential_fn=counted), chunk_size=3)
    assert max(sizes) == 3
    for name, draws in whole.posterior.samples.items():
        torch.testing.assert_close(grouped.posterior[name], draws)


def test_bad_settings():
    for settings, message in (
        ({"thinning": 0}, "thinning must be an integer of at least 1, got 0"),
        ({"thinning": 1000}, "thinning must be at most num_samples = 120, got 1000"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1, got 0"),
        ({"keep_draws": False, "chain_method": "sequential"}, "keep_draws=False needs chain_method='vectorized'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**settings)


def transitions(compile, count=600, chains=8):
    kernel = HMC(potential_fn=potential, compile=compile, step_size=0.7, num_steps=2, adapt_step_size=False)
    state = kernel.start((), {}, 5, chains, start(chains))
    runner, rows = Transitions(kernel, compile), []
    made = 0
    while made < count:
        state, part = runner.run(state, count - made)
        rows.append(part.position["a"])
        made += part.count
    return torch.cat(rows, 1), runner


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_recorded_transitions_are_the_kernels_own(compile):
    draws, runner = transitions(compile)
    kernel = HMC(potential_fn=potential, step_size=0.7, num_steps=2, adapt_step_size=False)
    state = kernel.start((), {}, 5, 8, start())
    want = []
    for _ in range(600):
        state, _ = kernel.step(state)
        want.append(state.position["a"])
    torch.testing.assert_close(draws, torch.stack(want, 1), rtol=1e-6, atol=1e-8)
    blocks = [b for b in runner._blocks.values() if b is not None]
    assert runner.recorded.reason == ""
    if compile:
        assert blocks
        assert all(b.graph.backend == "inductor" for b in blocks)


def test_a_kernel_that_looks_at_values_runs_as_it_is(caplog):
    class Looking(HMC):
        def transition(self, state, noise):
            assert float(state.potential[0]) > -1.0
            return super().transition(state, noise)

    kernel = Looking(potential_fn=potential, compile=True)
    with caplog.at_level(logging.INFO, "pyro_dgm.infer.mcmc"):
        mcmc = run(kernel, draws=60)
    assert any("run without a graph" in r.message for r in caplog.records)
    assert torch.isfinite(mcmc.posterior["a"]).all()


def test_one_diverged_chain_of_many_changes_no_other():
    def cliff(u):
        return torch.where(u["b"] > 6.0, math.nan, potential(u))

    initial = start(256)
    initial["b"] = initial["b"].clamp(-2, 2)
    settings = {"step_size": 0.3, "num_steps": 3, "adapt_step_size": False, "adapt_mass_matrix": False}
    calm = run(HMC(potential_fn=cliff, **settings), draws=30, chains=256, initial=initial)
    moved = {k: v.clone() for k, v in initial.items()}
    moved["b"][100] = 5.99
    with pytest.warns(RuntimeWarning, match="diverged"):
        other = run(HMC(potential_fn=cliff, **settings), draws=30, chains=256, initial=moved)
    others = [c for c in range(256) if c != 100]
    for name, draws in calm.posterior.samples.items():
        assert torch.equal(draws[others], other.posterior[name][others])


def test_nested_r_hat_tells_superchains_apart():
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(64, 3, 2, generator=g)
    together = nested_r_hat(draws, 8)
    apart = nested_r_hat(draws + torch.arange(8.0).repeat_interleave(8)[:, None, None], 8)
    assert together.shape == (2,)
    assert together.max() < 1.15
    assert apart.min() > 2.0
    with pytest.raises(ValueError, match="num_superchains must be at least 2 and divide the 64 chains, got 7"):
        nested_r_hat(draws, 7)


def test_a_run_without_warm_up_is_recorded_too():
    """Its first transitions have no graph of the potential yet: that is asked again, not settled."""
    kernel = Langevin(potential_fn=lambda u: 0.5 * u["x"].square().sum(-1), step_size=0.3, compile=False)
    state = kernel.start((), {}, 0, 8, {"x": torch.zeros(8, 3)})
    transitions = Transitions(kernel, False)
    made = 0
    while made < 200:
        state, rows = transitions.run(state, 200 - made, to_come=10**6)
        made += rows.count
    assert not transitions.recorded.reason
    assert transitions.recorded.graphs
    assert state.iteration == 200
