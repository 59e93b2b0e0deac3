"""Parallel tempering: mode weights where one temperature fails, the ladder, swaps, round trips, any inner kernel."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.mcmc import (
    HMC,
    MALA,
    MCLMC,
    MCMC,
    SGLD,
    AdjustedMCLMC,
    AnnealedLangevin,
    ChEES,
    Gibbs,
    GibbsWithGradients,
    Langevin,
    ParallelTempering,
    RandomWalk,
)
from pyro_dgm.infer.mcmc.kernels import parallel_tempering as module
from pyro_dgm.infer.mcmc.kernels.replicas import equal_rejection, swap_acceptance, swap_order
from tests.infer.mcmc.targets import EXACT_MOMENTS, MEAN, correlated, exact_draws, far_from, frequencies, moments, walk
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors

ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
CENTRES = 15.0 * torch.stack([ANGLES.cos(), ANGLES.sin()], -1)
WEIGHTS = torch.tensor([1.0, 2, 3, 4, 1, 2, 3, 4], dtype=torch.float64) / 20


def ring(u):
    """Eight Gaussians of standard deviation 1 on a circle of radius 15, of unequal weights."""
    squares = (u["x"].unsqueeze(-2) - CENTRES).square().sum(-1)
    return -torch.logsumexp(WEIGHTS.log() - 0.5 * squares, -1)


def modes(x):
    return (x.unsqueeze(-2) - CENTRES).square().sum(-1).argmin(-1)


START = {"x": CENTRES[:1].expand(100, 2).clone()}


def test_mode_weights_where_plain_hmc_fails():
    plain = MCMC(HMC(potential_fn=ring), 300, 300, 100, seed=0, progress=False)
    plain.run(initial_params=START)
    visited = modes(plain.get_samples(group_by_chain=True)["x"])
    assert bool((visited == 0).double().mean() > 0.9)  # it stays where it began

    kernel = ParallelTempering(HMC(potential_fn=ring), num_temperatures=7, max_temperature=60.0)
    mcmc = MCMC(kernel, 500, 300, 100, seed=0, progress=False)
    mcmc.run(initial_params=START)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert x.shape == (100, 500, 2)
    assert far_from(frequencies(modes(x), 8), WEIGHTS) < SIGMAS
    m = torch.stack([x[..., 0], x[..., 1], (x - CENTRES[modes(x)]).square().sum(-1)], -1)
    exact = torch.cat([WEIGHTS @ CENTRES, torch.tensor([2.0])])
    assert in_standard_errors(m[..., :2], exact[:2]).max() < SIGMAS
    assert abs(float(m[..., 2].mean()) - 2.0) < 0.1  # distance from the nearest centre, but for the tails between them
    torch.testing.assert_close(mcmc.posterior.sample_stats["lp"][4, 5], -ring({"x": x[4, 5:6]})[0])


INNER = {
    "hmc": HMC,
    "mala": MALA,
    "chees": ChEES,
    "mclmc-adjusted": AdjustedMCLMC,
    "random-walk": RandomWalk,
    "langevin": lambda **k: Langevin(step_size=0.3, **k),
}


@pytest.mark.parametrize("name", INNER)
def test_cold_draws_have_exact_moments_whatever_is_within(name):
    kernel = ParallelTempering(INNER[name](potential_fn=correlated), num_temperatures=4, max_temperature=10.0)
    mcmc = MCMC(kernel, 300, 150, 64, seed=2, progress=False)
    mcmc.run(initial_params={"x": exact_draws(64, 5)})
    errors = in_standard_errors(moments(mcmc.get_samples(group_by_chain=True)["x"]), EXACT_MOMENTS)
    # Langevin's step of 0.3 leaves it a bias of 7 % in the narrowest direction, 1 % in the widest.
    assert errors.max() < SIGMAS * (2 if name == "langevin" else 1), errors


def test_mclmc_within():
    """Its state has fields of its own, and momenta for every replica."""
    kernel = ParallelTempering(MCLMC(potential_fn=correlated), num_temperatures=3)
    mcmc = MCMC(kernel, 100, 100, 64, seed=2, progress=False)
    mcmc.run(initial_params={"x": exact_draws(64, 5)})
    assert (mcmc.get_samples()["x"].mean(0) - MEAN).abs().max() < 0.2


def test_every_rung_has_its_own_law():
    """Variance T / beta on each, by the replicas themselves; energies and gradients go with their positions."""
    kernel = ParallelTempering(
        HMC(potential_fn=lambda u: 0.5 * u["x"].square(), temperature=2.0), inverse_temperatures=[1.0, 0.4, 0.1]
    )
    start = {"x": torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}

    def look(state, info):
        replicas = state.replicas()
        x = replicas.position["x"]
        torch.testing.assert_close(replicas.potential, 0.5 * x.square())
        torch.testing.assert_close(replicas.gradient["x"], x)
        torch.testing.assert_close(state.position["x"], x[:, 0])
        return x.square()

    _, seen = walk(kernel, start, 30, after=look)
    last = seen[-1]
    errors = (last.mean(0) - torch.tensor([2.0, 5.0, 20.0])).abs() / (last.std(0) / len(last) ** 0.5)
    assert errors.max() < SIGMAS, errors


def test_swaps_alone_are_exact(monkeypatch):
    """Replicas at exact draws and an inner kernel that stands still: swaps leave every rung's law as it is."""
    betas = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)

    def run(formula):
        monkeypatch.setattr(module, "swap_acceptance", formula)
        kernel = ParallelTempering(
            RandomWalk(potential_fn=lambda u: 0.5 * u["x"].square(), step_size=1e-12),
            inverse_temperatures=betas.tolist(),
        )
        kernel.condition()
        g = torch.Generator().manual_seed(3)
        x = torch.randn(50000, 3, generator=g, dtype=torch.float64) / betas.sqrt()
        state = kernel.init({"x": x[:, 0]}, torch.Generator().manual_seed(4))
        hot = replace(state.hot, position={"x": x[:, 1:]}, potential=0.5 * x[:, 1:].square())
        state = replace(state, hot=hot)
        for _ in range(5):
            state, _ = kernel.step(state)
        squares = state.replicas().position["x"].square()
        return float(((squares.mean(0) - 1 / betas).abs() / (squares.std(0) / len(x) ** 0.5)).max())

    assert run(swap_acceptance) < SIGMAS
    # and a wrong formula is seen at once: the other sign, and one temperature for both
    assert run(lambda b, e: swap_acceptance(-b, e)) > 10 * SIGMAS
    assert run(lambda b, e: torch.ones_like(swap_acceptance(b, e))) > 10 * SIGMAS
    assert run(lambda b, e: swap_acceptance(0.5 * b, e)) > 2 * SIGMAS


def test_swap_probability():
    betas = torch.tensor([1.0, 0.25]).double()
    energies = torch.tensor([[3.0, 5.0], [5.0, 3.0], [math.inf, 1.0], [math.nan, 1.0]]).double()
    expected = torch.tensor([[math.exp(-0.75 * 2.0)], [1.0], [0.0], [0.0]]).double()
    torch.testing.assert_close(swap_acceptance(betas, energies), expected)


def test_even_and_odd_pairs_take_turns():
    """With every swap wanted a replica travels one rung a transition to the end and back: no random walk."""
    kernel = ParallelTempering(Langevin(potential_fn=lambda u: 0.0 * u["x"], step_size=1e-6), num_temperatures=5)
    start = {"x": torch.zeros(3, dtype=torch.float64)}
    kernel.condition()
    state = kernel.init(start, torch.Generator().manual_seed(0))
    marked = torch.arange(5, dtype=torch.float64).expand(3, 5) * 1000.0
    state = replace(state, position={"x": marked[:, 0]}, hot=replace(state.hot, position={"x": marked[:, 1:]}))
    where, trips = [], []
    for _ in range(20):
        state, _ = kernel.step(state)
        order = (state.replicas().position["x"][0] / 1000).round().to(torch.int64)
        where.append(int((order == 0).nonzero()))
        trips.append(int(state.round_trips[0]))
    assert where == [1, 2, 3, 4, 4, 3, 2, 1, 0, 0] * 2
    # replica 0 is back at 9, and then each of the others once it has been cold first
    assert trips[8] == 1
    assert kernel.statistics(state)["round_trips"].tolist() == [trips[-1]] * 3
    assert torch.equal(swap_order(torch.ones(1, 4, dtype=torch.bool), torch.tensor(1)), torch.tensor([[0, 2, 1, 4, 3]]))


@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
def test_posterior_says_how_the_swaps_went(chain_method):
    """Of a Gaussian with two rungs the acceptance is known: E min(1, exp((1 - beta) (U_0 - U_1)))."""
    kernel = ParallelTempering(
        HMC(potential_fn=lambda u: 0.5 * u["x"].square(), step_size=0.5, num_steps=4, adapt_step_size=False),
        num_temperatures=2,
        max_temperature=4.0,
    )
    chains = 64 if chain_method == "vectorized" else 2
    mcmc = MCMC(kernel, 500, 20, chains, chain_method=chain_method, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(chains, dtype=torch.float64)})
    attrs = mcmc.posterior.attrs
    if chain_method == "sequential":
        assert [len(a) for a in attrs["swap_acceptance"]] == [1, 1]
        assert attrs["inverse_temperatures"] == [[1.0, 0.25]] * 2
        return
    assert attrs["inverse_temperatures"] == [1.0, 0.25]
    assert len(attrs["round_trips"]) == 64
    g = torch.Generator().manual_seed(0)
    cold, hot = torch.randn(2, 200_000, generator=g, dtype=torch.float64) * torch.tensor([[1.0], [2.0]])
    expected = (0.75 * 0.5 * (cold.square() - hot.square())).exp().clamp(max=1).mean()
    assert attrs["swap_acceptance"][0] == pytest.approx(expected.item(), abs=0.01)


def test_ladder_is_tuned_to_equal_rejection():
    """From a ladder crowded at the cold end: rejections are level afterwards, and round trips more frequent."""
    crowded = [1.0, 0.98, 0.96, 0.94, 0.92, 0.02]
    results = {}
    for adapt in (False, True):
        kernel = ParallelTempering(
            HMC(potential_fn=lambda u: 0.5 * u["x"].square().sum(-1)), inverse_temperatures=crowded, adapt_ladder=adapt
        )
        start = {"x": torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
        state, seen = walk(kernel, start, 200, warmup=300, after=lambda s, _: s.swap_acceptance.mean(0))
        results[adapt] = torch.stack(seen).mean(0), kernel.statistics(state)["round_trips"].double().mean()
    before, after = results[False][0], results[True][0]
    assert before.max() - before.min() > 0.6
    assert after.max() - after.min() < 0.1, after
    assert results[True][1] > 2 * results[False][1]
    assert results[True][1] > 5


def test_tuning_finds_the_known_ladder():
    """For a Gaussian the barrier is linear in log beta, so the tuned ladder is geometric."""
    betas = torch.tensor([1.0, 0.9, 0.3, 0.01], dtype=torch.float64)
    tuned = equal_rejection(betas, -betas.log().diff())
    torch.testing.assert_close(tuned, 0.01 ** torch.linspace(0, 1, 4, dtype=torch.float64), rtol=2e-2, atol=0)
    assert torch.equal(equal_rejection(betas[:2], torch.tensor([0.3]).double()), betas[:2])
    stuck = equal_rejection(betas, torch.zeros(3).double())
    assert bool((stuck.diff() < 0).all())


def test_discrete_states():
    """Two far states of an Ising ring, joined only by heat."""

    def frustrated(s):
        spin = 2.0 * s["x"].double() - 1.0
        return -2.0 * (spin * spin.roll(1, -1)).sum(-1) - 0.1 * spin.sum(-1)

    start = {"x": torch.zeros(100, 6, dtype=torch.int64)}
    inner = GibbsWithGradients(potential_fn=frustrated, dtype=torch.float64)
    mcmc = MCMC(
        ParallelTempering(inner, num_temperatures=5, max_temperature=20.0), 600, 200, 100, seed=0, progress=False
    )
    mcmc.run(initial_params=start)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert x.dtype == torch.int64
    states = torch.cartesian_prod(*[torch.arange(2)] * 6)
    exact = torch.softmax(-frustrated({"x": states}), 0)
    code = 2 ** torch.arange(5, -1, -1)
    assert far_from(frequencies(x @ code, 64), exact) < SIGMAS


def bimodal(x):
    """The sign of the slope cannot be told from its square."""
    slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0).double(), 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(slope**2, 0.5), obs=x)


X = torch.tensor([3.8, 4.1, 4.3, 3.9]).double()


def test_a_model_in_every_driver():
    options = {"num_samples": 200, "warmup_steps": 150, "seed": 0, "progress": False}
    post = pyro_dgm.sample_posterior(bimodal, X, method="parallel-tempering", num_chains=32, **options)
    assert in_standard_errors(post["slope"].sign(), torch.tensor(0.0)).max() < SIGMAS
    assert post["slope"].sign().diff(dim=1).abs().sum() > 100
    inner = MALA()
    post = pyro_dgm.sample_posterior(bimodal, X, method=ParallelTempering(kernel=inner), num_chains=4, **options)
    assert post["slope"].shape == (4, 200)
    turns = MCMC(ParallelTempering(bimodal, num_temperatures=3), 20, 20, 2, "sequential", seed=0, progress=False)
    turns.run(X)
    assert turns.get_samples(group_by_chain=True)["slope"].shape == (2, 20)
    pyro.set_rng_seed(0)
    theirs = pyro.infer.MCMC(ParallelTempering(bimodal, num_temperatures=5), 500, 150, disable_progbar=True)
    theirs.run(X)
    slope = theirs.get_samples()["slope"]
    assert 0.1 < float((slope > 0).double().mean()) < 0.9
    assert abs(float(slope.abs().mean()) - 2.0) < 0.1
    kernel = pickle.loads(pickle.dumps(theirs.kernel))
    kernel.setup(1, X)
    assert set(kernel.sample(kernel.initial_params)) == {"slope"}


def test_chains_do_not_meet():
    ends = []
    for shift in (0.0, 7.0):
        start = exact_draws(6, 0)
        start[3] += shift
        kernel = ParallelTempering(HMC(potential_fn=correlated), num_temperatures=3)
        state, _ = walk(kernel, {"x": start}, 8)
        ends.append(state.position["x"])
    others = [0, 1, 2, 4, 5]
    assert torch.equal(ends[0][others], ends[1][others])
    assert not torch.equal(ends[0][3], ends[1][3])


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: ParallelTempering(num_temperatures=1),
            ValueError,
            "num_temperatures must be an integer of at least 2",
        ),
        (
            lambda: ParallelTempering(num_temperatures=0),
            ValueError,
            "num_temperatures must be an integer of at least 2",
        ),
        (lambda: ParallelTempering(max_temperature=1.0), ValueError, "max_temperature must be above 1"),
        (lambda: ParallelTempering(inverse_temperatures=[0.9, 0.1]), ValueError, "must fall from 1"),
        (lambda: ParallelTempering(inverse_temperatures=[1.0, 0.5, 0.5]), ValueError, "must fall from 1"),
        (lambda: ParallelTempering(inverse_temperatures=[1.0, 0.0]), ValueError, "stay positive"),
        (lambda: ParallelTempering(inverse_temperatures=[]), ValueError, "at least two"),
        (lambda: ParallelTempering(temperature=0.0), ValueError, "temperature must be positive"),
        (lambda: ParallelTempering(HMC(), kernel=HMC()), ValueError, "give the inner kernel once"),
        (lambda: ParallelTempering(HMC(bimodal), potential_fn=ring), ValueError, "give it once"),
        (
            lambda: ParallelTempering(kernel=HMC(), step_size=0.1),
            ValueError,
            r"\['step_size'\] are settings of the inner",
        ),
        (lambda: ParallelTempering(kernel=HMC), TypeError, "kernel must be a pyro_dgm.infer.mcmc.Kernel, got ABCMeta"),
        (lambda: ParallelTempering(SGLD(bimodal)), ValueError, "can be tempered, got SGLD"),
        (lambda: ParallelTempering(AnnealedLangevin(bimodal)), ValueError, "can be tempered, got AnnealedLangevin"),
        (lambda: ParallelTempering(Gibbs({"x": lambda s, u: u})), ValueError, "can be tempered, got Gibbs"),
        (lambda: ParallelTempering(ParallelTempering()), ValueError, "can be tempered, got ParallelTempering"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()
