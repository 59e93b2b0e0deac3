"""Gibbs with gradients: state frequencies by enumeration, detailed balance, discrete latents of a Pyro model."""

from __future__ import annotations

import itertools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.mcmc import MCMC, GibbsWithGradients
from tests.infer.mcmc.targets import far_from, frequencies
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors

G = torch.Generator().manual_seed(5)
J = 0.2 * torch.randn(4, 4, generator=G, dtype=torch.float64)
FIELD = 0.5 * torch.randn(4, generator=G, dtype=torch.float64)
P = torch.randn(2, 3, 2, 3, generator=G, dtype=torch.float64)


def ising(s):
    """Couplings, fields, and a term of third order, which makes the gradient's estimate inexact."""
    spin = 2.0 * s["x"].double() - 1.0
    return -torch.einsum("ci,ij,cj->c", spin, J, spin) - spin @ FIELD + 0.7 * s["x"].double()[:, :3].prod(-1) ** 2


def potts(s):
    return -torch.einsum("cij,ijkl,ckl->c", s["x"], P, s["x"])


BINARY = torch.tensor(list(itertools.product([0, 1], repeat=4)))
TERNARY = torch.tensor(list(itertools.product([0, 1, 2], repeat=2)))
ISING = torch.softmax(-ising({"x": BINARY}), 0)
POTTS = torch.softmax(-potts({"x": torch.nn.functional.one_hot(TERNARY, 3).double()}), 0)


def binary_code(x):
    return x.to(torch.int64) @ torch.tensor([8, 4, 2, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("num_updates", [1, 3])
def test_every_state_of_an_ising_model_as_often_as_it_should_be(dtype, num_updates):
    kernel = GibbsWithGradients(potential_fn=ising, dtype=torch.float64, num_updates=num_updates)
    mcmc = MCMC(kernel, 400, 50, 200, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(200, 4, dtype=dtype)})
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert x.dtype == dtype
    assert far_from(frequencies(binary_code(x), 16), ISING) < SIGMAS
    stats = mcmc.posterior.sample_stats
    assert 0.2 < float(stats["acceptance_rate"].mean()) < 0.999
    torch.testing.assert_close(stats["lp"][2, 9], -ising({"x": x[2, 9:10]})[0])


@pytest.mark.parametrize("one_hot", [False, True])
def test_categories(one_hot):
    kernel = GibbsWithGradients(potential_fn=potts, num_categories=3, dtype=torch.float64)
    start = torch.zeros(200, 2, dtype=torch.int64)
    if one_hot:
        start = torch.nn.functional.one_hot(start, 3).double()
    mcmc = MCMC(kernel, 400, 50, 200, seed=1, progress=False)
    mcmc.run(initial_params={"x": start})
    x = mcmc.get_samples(group_by_chain=True)["x"]
    if one_hot:
        assert bool((x.sum(-1) == 1).all())
        x = x.argmax(-1)
    assert far_from(frequencies(x @ torch.tensor([3, 1]), 9), POTTS) < SIGMAS


def test_temperature():
    kernel = GibbsWithGradients(potential_fn=ising, temperature=2.5, dtype=torch.float64)
    mcmc = MCMC(kernel, 300, 50, 200, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(200, 4)})
    exact = torch.softmax(-ising({"x": BINARY}) / 2.5, 0)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert far_from(frequencies(binary_code(x), 16), exact) < SIGMAS
    assert far_from(frequencies(binary_code(x), 16), ISING) > 3 * SIGMAS


def test_detailed_balance_exactly():
    """The matrix of transition probabilities, by proposing every change from every state, is reversible."""
    kernel = GibbsWithGradients(potential_fn=ising, dtype=torch.float64)
    kernel.condition()
    matrix = torch.zeros(16, 16, dtype=torch.float64)
    state = kernel.init({"x": BINARY.double()}, torch.Generator().manual_seed(0))
    q = kernel._log_proposal(state.position, state.gradient).exp()
    for i in range(4):
        gumbel = torch.full((16, 1, 4), -1e9, dtype=torch.float64)
        gumbel[..., i] = 1e9
        new, info = kernel.transition(state, {"gumbel": gumbel, "accept": torch.zeros(16, 1, dtype=torch.float64)})
        flipped = state.position["x"].clone()
        flipped[:, i] = 1 - flipped[:, i]
        assert torch.equal(new.position["x"], flipped)
        matrix[torch.arange(16), binary_code(flipped)] = q[:, i] * info.acceptance_rate
    flow = ISING[:, None] * matrix
    torch.testing.assert_close(flow, flow.T)
    assert float(flow.abs().sum()) > 0.3


@pytest.mark.parametrize("num_categories", [None, 3], ids=["binary", "categorical"])
def test_proposals_follow_what_a_change_would_gain(num_categories):
    """Where the potential is linear in each variable the estimate is exact: against every change made by hand."""
    if num_categories is None:
        couplings = torch.triu(J, 1)

        def potential(s):
            return -torch.einsum("ci,ij,cj->c", s["x"], couplings, s["x"]) - s["x"] @ FIELD
    else:

        def potential(s):
            return -torch.einsum("ci,ij,cj->c", s["x"][:, 0], P[0, :, 1], s["x"][:, 1])

    kernel = GibbsWithGradients(
        potential_fn=potential, num_categories=num_categories, dtype=torch.float64, temperature=1.7
    )
    kernel.condition()
    state = kernel.init({"x": BINARY if num_categories is None else TERNARY}, torch.Generator())
    found = kernel._log_proposal(kernel._relaxed.relax(state.position), state.gradient)
    gains = []
    for i in range(state.position["x"].shape[1]):
        for value in range(num_categories or 1):
            x = state.position["x"].clone()
            x[:, i] = 1 - x[:, i] if num_categories is None else value
            gain = (state.potential - kernel.potential.value({"x": x})) / 1.7
            gains.append(torch.where((x == state.position["x"]).all(-1), -torch.inf, gain))
    torch.testing.assert_close(found, torch.log_softmax(0.5 * torch.stack(gains, -1), -1))


def test_several_variables_of_several_kinds():
    """A binary and a categorical state, one change at a time over both."""
    table = torch.randn(2, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def potential(s):
        one_hot = torch.stack([1 - s["b"], s["b"]], -1)
        return -torch.einsum("ci,ij,cj->c", one_hot, table, s["k"].squeeze(1))

    kernel = GibbsWithGradients(potential_fn=potential, num_categories={"b": None, "k": 3}, dtype=torch.float64)
    mcmc = MCMC(kernel, 300, 20, 200, seed=0, progress=False)
    mcmc.run(initial_params={"b": torch.zeros(200, dtype=torch.int64), "k": torch.ones(200, 1, dtype=torch.int64)})
    s = mcmc.get_samples(group_by_chain=True)
    exact = torch.softmax(table.flatten(), 0)
    assert far_from(frequencies(3 * s["b"] + s["k"].squeeze(-1), 6), exact) < SIGMAS


def belief_net(x):
    """Two binary causes and a category with two plates of data below."""
    logits = torch.tensor([0.3, -0.6]).double()
    z = pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
    k = pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5]).double()))
    loc = z @ torch.tensor([1.0, -1.5]).double() + k @ torch.tensor([0.0, 1.0, 2.0]).double()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


X = torch.tensor([0.4, 1.9]).double()


def exact_belief_net():
    states = list(itertools.product([0.0, 1.0], [0.0, 1.0], range(3)))
    logs = []
    for z1, z2, k in states:
        values = {"z": torch.tensor([z1, z2]).double(), "k": torch.eye(3).double()[k]}
        logs.append(pyro.poutine.trace(pyro.poutine.condition(belief_net, values)).get_trace(X).log_prob_sum())
    return torch.softmax(torch.stack(logs), 0)


def test_discrete_latents_of_a_model():
    options = {"num_samples": 300, "num_chains": 100, "warmup_steps": 30, "seed": 0, "progress": False}
    post = pyro_dgm.sample_posterior(belief_net, X, method=GibbsWithGradients(), **options)
    code = 6 * post["z"][..., 0] + 3 * post["z"][..., 1] + post["k"].argmax(-1)
    assert far_from(frequencies(code.to(torch.int64), 12), exact_belief_net()) < SIGMAS
    values = {k: v[5, 6] for k, v in post.samples.items()}
    joint = pyro.poutine.trace(pyro.poutine.condition(belief_net, values)).get_trace(X).log_prob_sum()
    torch.testing.assert_close(post.sample_stats["lp"][5, 6], joint)


def test_in_pyros_driver_and_in_turn():
    pyro.set_rng_seed(0)
    theirs = pyro.infer.MCMC(GibbsWithGradients(belief_net, num_updates=2), 400, 20, disable_progbar=True)
    theirs.run(X)
    z = theirs.get_samples()["z"].reshape(10, 40, 2)
    p = exact_belief_net().reshape(2, 2, 3)
    assert in_standard_errors(z, torch.stack([p[1].sum(), p[:, 1].sum()])).max() < SIGMAS
    copy = pickle.loads(pickle.dumps(theirs.kernel))
    copy.setup(1, X)
    assert set(copy.sample(copy.initial_params)) == {"z", "k"}
    ours = MCMC(GibbsWithGradients(belief_net), 30, 10, 2, "sequential", seed=0, progress=False)
    ours.run(X)
    assert ours.get_samples(group_by_chain=True)["z"].shape == (2, 30, 2)


def test_impossible_states_are_rejected_and_nan_marked():
    def hard(s):
        x = s["x"]
        return x.sum(-1) + torch.where(x[:, 0] + x[:, 1] > 1.5, torch.inf, 0.0)

    mcmc = MCMC(GibbsWithGradients(potential_fn=hard), 300, 20, 50, seed=0, progress=False)
    mcmc.run(initial_params={"x": torch.zeros(50, 2)})
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert not bool((x.sum(-1) == 2).any())
    assert not bool(mcmc.posterior.sample_stats["diverging"].any())
    exact = torch.softmax(torch.tensor([0.0, -1.0, -1.0]).double(), 0)
    assert far_from(frequencies((x @ torch.tensor([1.0, 2.0])).to(torch.int64), 3), exact) < SIGMAS

    def broken(s):
        return s["x"].sum(-1) + torch.where(s["x"][:, 0] > 0.5, torch.nan, 0.0)

    mcmc = MCMC(GibbsWithGradients(potential_fn=broken), 50, 0, 8, seed=0, progress=False)
    with pytest.warns(RuntimeWarning, match="draws diverged"):
        mcmc.run(initial_params={"x": torch.zeros(8, 2)})
    assert bool((mcmc.get_samples()["x"][:, 0] == 0).all())


@pytest.mark.parametrize(
    "start, settings, message",
    [
        (torch.full((2, 3), 0.5), {}, "state 'x' must be binary, zeros and ones, got values from 0.5 to 0.5"),
        (torch.full((2, 3), 2), {}, "state 'x' must be binary"),
        (torch.full((2, 3), 3), {"num_categories": 3}, "state 'x' must be integers from 0 to num_categories - 1 = 2"),
        (torch.zeros(2, 3), {"num_categories": 3}, "state 'x' must be one-hot in a last dimension of"),
        (torch.ones(2, 4, 2), {"num_categories": 3}, "state 'x' must be one-hot in a last dimension of"),
    ],
)
def test_states_of_the_wrong_kind_are_named(start, settings, message):
    kernel = GibbsWithGradients(potential_fn=lambda s: s["x"].flatten(1).sum(-1), **settings)
    with pytest.raises(ValueError, match=message):
        MCMC(kernel, 5, 5, 2, progress=False).run(initial_params={"x": start})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_categories": 1}, "num_categories must be an integer of at least 2, or None, got 1"),
        ({"num_updates": 0}, "num_updates must be an integer of at least 1"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GibbsWithGradients(**settings)


def test_models_that_it_cannot_use_are_named():
    def continuous():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def integers():
        pyro.sample("k", dist.Categorical(torch.ones(3)))

    with pytest.raises(ValueError, match="latent site 'z' is Normal; GibbsWithGradients samples Bernoulli"):
        MCMC(GibbsWithGradients(continuous), 5, 5, 2, progress=False).run()
    with pytest.raises(ValueError, match="latent site 'k' is Categorical"):
        MCMC(GibbsWithGradients(integers), 5, 5, 2, progress=False).run()
