"""Deep and fully visible Boltzmann machines against enumeration."""

from __future__ import annotations

import functools

import pytest
import torch

import pyro_dgm
from pyro_dgm.infer import ContrastiveDivergence, PersistentCD
from pyro_dgm.models import DBM, BoltzmannMachine
from pyro_dgm.ops import binary_states


def make(hidden=(3, 2), num_visible=4, seed=0, scale=1.0):
    torch.manual_seed(seed)
    dbm = DBM(num_visible, hidden).double()
    with torch.no_grad():
        for p in dbm.parameters():
            p.normal_().mul_(scale)
    return dbm


def log_f(dbm, layers):
    """Minus the energy by its definition."""
    total = sum(h @ b for h, b in zip(layers, dbm.biases, strict=True))
    for i, w in enumerate(dbm.weights):
        total = total + (layers[i] @ w * layers[i + 1]).sum(-1)
    return total


def split(dbm, states):
    return states.split([dbm.num_visible, *dbm.hidden], -1)


@pytest.mark.parametrize("hidden", [(3, 2), (2, 4), (3, 2, 2), (2, 3, 1, 2)])
def test_densities_by_enumeration_of_all_layers(hidden):
    dbm = make(hidden)
    units = 4 + sum(hidden)
    states = torch.cat(list(binary_states(units, like=dbm.biases[0])))
    table = log_f(dbm, split(dbm, states))
    log_z = table.logsumexp(0)
    torch.testing.assert_close(dbm.log_normalizer("exact").value, log_z)
    v = torch.cat(list(binary_states(4, like=table)))
    expected = torch.stack([table[(states[:, :4] == row).all(-1)].logsumexp(0) for row in v]) - log_z
    torch.testing.assert_close(dbm.log_likelihood(v), expected)
    assert (dbm.elbo(v) <= expected + 1e-9).all()
    assert (dbm.elbo(v) < expected - 1e-4).any()


def test_bound_is_the_mean_field_one():
    dbm = make()
    v = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    law = dbm.distribution()
    mu2 = law.mean_field(v)
    mu1 = law.joint.hidden_logits(torch.cat([v, mu2], -1)).sigmoid()
    entropy = sum(torch.special.entr(m).sum() + torch.special.entr(1 - m).sum() for m in (mu1, mu2))
    torch.testing.assert_close(law.log_prob(v), log_f(dbm, [v, mu1, mu2]) + entropy)
    # stationary: no mean field nearby is better
    torch.testing.assert_close(mu2, (dbm.biases[2] + mu1 @ dbm.weights[1]).sigmoid(), atol=1e-4, rtol=0)


def test_one_coupling_less_and_the_bound_is_exact():
    dbm = make()
    with torch.no_grad():
        dbm.weights[1].zero_()
    v = torch.cat(list(binary_states(4, like=dbm.biases[0])))
    torch.testing.assert_close(dbm.elbo(v), dbm.log_likelihood(v))


def test_gibbs_sweeps_leave_the_law_as_it_is():
    dbm = make((3, 2, 2))
    law = dbm.distribution()
    before = law.exact_sample(40_000)
    after = law.mcmc_step(before, 2)
    a, b = (torch.cat([x, x[:, :1] * x], -1) for x in (before, after))
    error = ((a.var(0) + b.var(0)) / 40_000).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error + 1e-12).all()
    v = torch.cat(list(binary_states(4, like=before)))
    p = dbm.log_likelihood(v).exp()
    counts = (law.value_of(before)[:, None] == v).all(-1).double().mean(0)
    assert ((counts - p).abs() < 4.5 * (p * (1 - p) / 40_000).sqrt()).all()


def test_annealing_brackets_the_exact_answer():
    dbm = make((6, 4), 8)
    exact = float(dbm.log_normalizer("exact"))
    forward = dbm.log_normalizer("ais", 500, 300, seed=0)
    reverse = dbm.log_normalizer("ais", 500, 300, direction="reverse", seed=0)
    for found in (forward, reverse):
        assert abs(float(found) - exact) < 4 * float(found.standard_error)
    assert float(forward.bound) - 3 * float(forward.bound_standard_error) < exact
    assert exact < float(reverse.bound) + 3 * float(reverse.bound_standard_error)


def test_pretraining_and_training_of_a_small_machine():
    torch.manual_seed(3)
    prototypes = torch.randint(2, (4, 16)).float()
    x = prototypes[torch.randint(4, (600,))]
    x = torch.where(torch.rand_like(x) < 0.1, 1 - x, x)
    torch.manual_seed(0)
    dbm = DBM(16, (10, 8))
    stages, below = [], x
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    for layer in range(2):
        stage = dbm.stage(layer)
        pyro_dgm.fit(
            stage, below, objective=ContrastiveDivergence(1), optimizer=adam, epochs=10, batch_size=50, seed=0,
            progress=False,
        )  # fmt: skip
        dbm.load_stage(layer, stage)
        stages.append(stage)
        below = stage.encode(below)
    assert torch.equal(dbm.weights[0], stages[0].weight)
    pretrained = float(dbm.log_likelihood(x).mean())
    run = pyro_dgm.fit(
        dbm, x, objective=PersistentCD(num_steps=5, num_chains=200), optimizer=adam, epochs=30, batch_size=100, seed=0,
        progress=False,
    )  # fmt: skip
    assert len(run.history["train"]) == 30
    exact, bound = dbm.log_likelihood(x), dbm.elbo(x)
    assert (bound <= exact + 1e-4).all()
    assert float((exact - bound).mean()) < 1.0
    mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = float((x * mean.log() + (1 - x) * (1 - mean).log()).sum(-1).mean())
    assert float(exact.mean()) > max(pretrained, independent + 0.5)


def test_middle_layers_are_halved():
    dbm = DBM(4, (3, 3, 2))
    stage = dbm.stage(1)
    assert (stage.visible_copies, stage.hidden_copies) == (1, 1)
    dbm.load_stage(1, stage)
    torch.testing.assert_close(dbm.weights[1].data, 0.5 * stage.weight.data)
    assert (dbm.stage(0).visible_copies, dbm.stage(2).hidden_copies) == (2, 2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="hidden must hold two or more layers"):
        DBM(4, (3,))
    with pytest.raises(ValueError, match=r"hidden\[1\] must be an integer of at least 1"):
        DBM(4, (3, 0))
    with pytest.raises(ValueError, match="num_mean_field must be an integer of at least 1"):
        DBM(4, (3, 2), num_mean_field=0)
    with pytest.raises(ValueError, match="layer must be from 0 to 1"):
        DBM(4, (3, 2)).stage(2)
    with pytest.raises(ValueError, match="which a Bernoulli visible unit cannot be"):
        DBM(4, (3, 2)).check_batch(torch.rand(2, 4))
    with pytest.raises(ValueError, match="at most 20 units in the even or odd hidden layers"):
        DBM(4, (30, 30)).log_likelihood(torch.ones(1, 4), 0.0)
    with pytest.raises(ValueError, match="num_visible must be an integer of at least 1"):
        BoltzmannMachine(0)
    with pytest.raises(ValueError, match="enumeration needs at most 20 units"):
        BoltzmannMachine(30).log_normalizer("exact")


# ------------------------------------------------------------------------------------------------- fully visible


def machine(n=6, seed=0):
    torch.manual_seed(seed)
    bm = BoltzmannMachine(n).double()
    with torch.no_grad():
        for p in bm.parameters():
            p.normal_()
    return bm


def test_fully_visible_density():
    bm = machine()
    v = torch.cat(list(binary_states(6, like=bm.bias)))
    w = bm.coupling
    assert torch.equal(w, w.mT)
    assert (w.diagonal() == 0).all()
    expected = v @ bm.bias + torch.stack([sum(x[i] * x[j] * w[i, j] for i in range(6) for j in range(i)) for x in v])
    torch.testing.assert_close(-bm.free_energy(v), expected)
    torch.testing.assert_close(bm.log_normalizer("exact").value, expected.logsumexp(0).detach())
    assert float(bm.log_likelihood(v).exp().sum()) == pytest.approx(1.0)
    # the conditional of a unit, from the joint
    flipped = v.clone()
    flipped[:, 2] = 1 - flipped[:, 2]
    conditional = (-bm.free_energy(v)) - torch.logaddexp(-bm.free_energy(v), -bm.free_energy(flipped))
    logits = bm.distribution().unit_logits(v)[:, 2]
    torch.testing.assert_close(conditional, v[:, 2] * logits - torch.nn.functional.softplus(logits))
    torch.testing.assert_close(
        bm.log_pseudolikelihood(v),
        (v * bm.distribution().unit_logits(v) - torch.nn.functional.softplus(bm.distribution().unit_logits(v))).sum(-1),
    )


def test_fully_visible_sweeps_and_annealing():
    bm = machine()
    law = bm.distribution()
    before = law.exact_sample(20_000)
    after = law.mcmc_step(before, 2)
    a, b = (torch.cat([x, x[:, :1] * x], -1) for x in (before, after))
    error = ((a.var(0) + b.var(0)) / 20_000).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error + 1e-12).all()
    exact = float(bm.log_normalizer("exact"))
    forward = bm.log_normalizer("ais", 100, 500, seed=0)
    reverse = bm.log_normalizer("ais", 100, 500, direction="reverse", seed=0)
    for found in (forward, reverse):
        assert abs(float(found) - exact) < 4 * float(found.standard_error)
    assert float(forward.bound) - 3 * float(forward.bound_standard_error) < exact
    assert exact < float(reverse.bound) + 3 * float(reverse.bound_standard_error)
