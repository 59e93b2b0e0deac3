"""Restricted Boltzmann machines against enumeration of all their states."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import pyro_dgm
from pyro_dgm.distributions import RBMDistribution
from pyro_dgm.models import RBM
from pyro_dgm.ops import binary_states

KINDS = {
    "bernoulli": {},
    "gaussian": {"scale": 0.7},
    "categorical": {"num_categories": 3},
}
every = pytest.mark.parametrize("kind", list(KINDS))


def make(kind, num_visible=4, num_hidden=3, seed=0):
    torch.manual_seed(seed)
    rbm = RBM(num_visible, num_hidden, kind, **KINDS[kind]).double()
    with torch.no_grad():
        for p in rbm.parameters():
            p.normal_()
    return rbm


def visible_states(rbm):
    """All values of discrete visible units, shaped."""
    if rbm.visible == "bernoulli":
        return torch.cat(list(binary_states(rbm.num_visible, like=rbm.weight)))
    index = torch.cartesian_prod(*[torch.arange(3)] * rbm.num_visible)
    return torch.nn.functional.one_hot(index, 3).to(rbm.weight)


def energy(rbm, v, h):
    """By the definition, term by term."""
    flat = v.reshape(len(v), -1)
    if rbm.visible == "gaussian":
        s = rbm.units.scale
        return (
            0.5 * ((flat - rbm.visible_bias) / s).square().sum(-1)
            - h @ rbm.hidden_bias
            - (flat / s**2 @ rbm.weight * h).sum(-1)
        )
    return -(flat @ rbm.visible_bias) - h @ rbm.hidden_bias - (flat @ rbm.weight * h).sum(-1)


def values(rbm, count):
    if rbm.visible == "gaussian":
        return torch.randn(count, rbm.num_visible, dtype=torch.float64)
    states = visible_states(rbm)
    return states[torch.randint(len(states), (count,))]


@every
def test_free_energy_sums_hidden_units_out(kind):
    rbm = make(kind)
    v = values(rbm, 10)
    hidden = torch.cat(list(binary_states(3, like=v)))
    table = torch.stack([-energy(rbm, v, h.expand(10, -1)) for h in hidden])
    torch.testing.assert_close(-rbm.free_energy(v), table.logsumexp(0))
    p_first = (table + torch.where(hidden[:, :1] > 0, 0.0, -math.inf)).logsumexp(0) - table.logsumexp(0)
    torch.testing.assert_close(rbm.encode(v)[:, 0], p_first.exp())


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_exact_log_normalizer_is_the_sum_over_visible_states(kind):
    rbm = make(kind)
    expected = (-rbm.free_energy(visible_states(rbm))).logsumexp(0)
    torch.testing.assert_close(rbm.log_normalizer("exact").value, expected)
    assert float(rbm.log_likelihood(visible_states(rbm)).exp().sum()) == pytest.approx(1.0)


def test_exact_log_normalizer_by_the_shorter_side():
    wide = make("bernoulli", 4, 6)
    torch.testing.assert_close(
        wide.log_normalizer("exact").value, (-wide.free_energy(visible_states(wide))).logsumexp(0)
    )
    # many hidden units are no matter where visible ones are few, or the other way round
    many = make("bernoulli", 6, 30)
    assert many.log_normalizer("exact").value > 0
    with pytest.raises(ValueError, match="at most 20 hidden units"):
        make("bernoulli", 30, 30).log_normalizer("exact")


def test_gaussian_log_normalizer_by_quadrature():
    rbm = make("gaussian", num_visible=2)
    grid = torch.linspace(-15, 15, 601, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    total = (-rbm.free_energy(points)).logsumexp(0) + 2 * math.log(float(grid[1] - grid[0]))
    assert float(rbm.log_normalizer("exact")) == pytest.approx(float(total.detach()), abs=1e-6)


@every
def test_gibbs_sweeps_leave_the_law_as_it_is(kind):
    rbm = make(kind)
    law = rbm.distribution()
    before = law.exact_sample(40_000)
    after = law.mcmc_step(before, 3)
    statistics = []
    for x in (before, after):
        h = rbm.encode(x)
        flat = x.reshape(len(x), -1)
        statistics.append(torch.cat([flat, h, flat[:, :1] * h], -1))
    a, b = statistics
    error = ((a.var(0) + b.var(0)) / 40_000).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error + 1e-12).all()


@every
def test_sweeps_leave_their_argument_as_it_is(kind):
    rbm = make(kind)
    law = rbm.distribution()
    x = values(rbm, 10)
    given = x.clone(), rbm.weight.detach().clone(), rbm.visible_bias.detach().clone()
    moved = law.mcmc_step(x, 2)
    law.anneal(rbm.base_bias(x.mean(0)), torch.linspace(0, 1, 4), 10, target_samples=x)
    for now, before in zip((x, rbm.weight, rbm.visible_bias), given, strict=True):
        assert torch.equal(now, before)
    assert moved.shape == x.shape and not torch.equal(moved, x) and not moved.requires_grad


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_samples_have_the_enumerated_law(kind):
    rbm = make(kind)
    states = visible_states(rbm).reshape(-1, rbm.units.size)
    p = rbm.log_likelihood(visible_states(rbm)).exp()
    code = 3.0 ** torch.arange(rbm.units.size, dtype=torch.float64)
    keys = states @ code
    for x in (rbm.sample(20_000, num_steps=60, seed=0), rbm.distribution().exact_sample(20_000)):
        counts = ((x.reshape(len(x), -1) @ code)[:, None] == keys).double().sum(0)
        assert counts.sum() == 20_000
        enough = 20_000 * p > 5
        chi2 = ((counts - 20_000 * p).square() / (20_000 * p))[enough].sum()
        n = int(enough.sum())
        assert float(chi2) < n + 5 * (2 * n) ** 0.5


def test_gaussian_samples_have_the_mixtures_mean():
    rbm = make("gaussian")
    x = rbm.distribution().exact_sample(40_000)
    hidden = torch.cat(list(binary_states(3, like=x)))
    law = rbm.distribution()
    log_p = hidden @ law.hidden_bias + law.units.log_partition(law.visible_eta(hidden), law.visible_bias)
    mean = log_p.softmax(0) @ law.visible_eta(hidden)
    assert ((x.mean(0) - mean).abs() < 4.5 * x.std(0) / 200).all()


@every
@pytest.mark.parametrize("schedule", ["linear", "sigmoidal", "rbm"])
def test_annealing_brackets_the_exact_answer(kind, schedule):
    rbm = make(kind, 5, 4, seed=1)
    exact = float(rbm.log_normalizer("exact"))
    for direction, side in (("forward", 1), ("reverse", -1)):
        found = rbm.log_normalizer("ais", 300, 400, schedule=schedule, direction=direction, seed=0)
        assert abs(float(found) - exact) < 4 * float(found.standard_error)
        assert side * (exact - float(found.bound)) > -3 * float(found.bound_standard_error)
        assert found.samples.shape == (400, *rbm.event_shape)


def test_annealing_of_sixteen_hidden_units():
    rbm = make("bernoulli", 40, 16)
    with torch.no_grad():
        rbm.weight.mul_(0.5)
    exact = float(rbm.log_normalizer("exact"))
    forward = rbm.log_normalizer("ais", 2000, 100, seed=0)
    reverse = rbm.log_normalizer("ais", 2000, 100, direction="reverse", seed=0)
    assert abs(float(forward) - exact) < 0.15
    assert float(forward.bound) - 3 * float(forward.bound_standard_error) < exact
    assert exact < float(reverse.bound) + 3 * float(reverse.bound_standard_error)


def test_base_rates_are_the_datas():
    rbm = make("bernoulli", 6, 3)
    data = rbm.distribution().exact_sample(500)
    found = rbm.log_normalizer("ais", 50, 20, data=data, seed=0)
    mean = data.mean(0).clamp(0.01, 0.99)
    start = torch.nn.functional.softplus(mean.logit()).sum() + 3 * math.log(2)
    torch.testing.assert_close(found.start, start)


def test_a_bad_schedule_shows_in_the_ess():
    rbm = make("bernoulli", 30, 16)
    with torch.no_grad():
        rbm.weight.mul_(2.0)
    with pytest.warns(RuntimeWarning, match="effective sample size of the forward weights"):
        rbm.log_normalizer("ais", 3, 200, schedule="linear", data=torch.zeros(4, 30, dtype=torch.float64), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rbm.log_normalizer("ais", 3000, 200, seed=0)


def test_reverse_without_exact_draws():
    rbm = make("bernoulli", 30, 30)
    with pytest.raises(ValueError, match="pass the best there are as target_samples"):
        rbm.log_normalizer("ais", 10, 10, direction="reverse")
    with torch.no_grad():
        rbm.weight.mul_(0.05)
    found = rbm.log_normalizer("ais", 50, 40, direction="reverse", target_samples=rbm.sample(40, num_steps=100), seed=0)
    forward = rbm.log_normalizer("ais", 50, 40, seed=0)
    assert abs(float(found) - float(forward)) < 0.2


def test_training_reaches_the_likelihood_of_exact_gradients():
    # Three prototypes with flipped pixels: a model that has learned them knows which pixel goes with which.
    torch.manual_seed(0)
    prototypes = torch.randint(2, (3, 12)).float()
    x = prototypes[torch.randint(3, (600,))]
    x = torch.where(torch.rand_like(x) < 0.05, 1 - x, x)
    scores = {}
    for name in ("exact", "pcd"):
        torch.manual_seed(1)
        rbm = RBM(12, 5)
        rbm.initialize_bias(x)
        if name == "exact":
            states = visible_states(RBM(12, 5))
            optimizer = torch.optim.Adam(rbm.parameters(), lr=0.05)
            for _ in range(300):
                optimizer.zero_grad()
                (rbm.free_energy(x).mean() + (-rbm.free_energy(states)).logsumexp(0)).backward()
                optimizer.step()
        else:
            pyro_dgm.fit(
                rbm, x, objective=pyro_dgm.infer.PersistentCD(num_steps=5, num_chains=1000), epochs=200, batch_size=200,
                optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
                lr_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.05, 200), seed=0, progress=False,
            )  # fmt: skip
        scores[name] = float(rbm.log_likelihood(x).mean())
    independent = x.mean(0)
    baseline = float((x * independent.log() + (1 - x) * (1 - independent).log()).sum(-1).mean())
    assert scores["exact"] > baseline + 2.0
    assert scores["pcd"] > scores["exact"] - 0.3


def test_reconstruction_and_shapes():
    rbm = RBM(6, 3, event_shape=(2, 3))
    x = torch.randint(2, (5, 2, 3)).float()
    assert rbm.reconstruct(x).shape == (5, 2, 3)
    assert rbm.sample(4, num_steps=3).shape == (4, 2, 3)
    torch.testing.assert_close(rbm.reconstruct(x), rbm.decode(rbm.encode(x)))
    with torch.no_grad():
        rbm.weight.zero_()
        rbm.visible_bias.copy_(torch.arange(6.0))
    torch.testing.assert_close(rbm.reconstruct(x)[0].flatten(), torch.arange(6.0).sigmoid())


def test_sampling_is_seeded_and_starts_where_it_is_told(rng_unchanged):
    rbm = make("bernoulli", 6, 3)
    with rng_unchanged():
        a, b = rbm.sample(7, num_steps=5, seed=1), rbm.sample(7, num_steps=5, seed=1)
    assert torch.equal(a, b)
    with torch.no_grad():
        rbm.visible_bias.fill_(100.0)
    assert (rbm.sample(3, num_steps=1, initial=torch.zeros(3, 6, dtype=torch.float64)) == 1).all()


def test_log_normalizer_of_the_distribution():
    law = make("bernoulli").distribution()
    v = torch.ones(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="log normaliser of this RBMDistribution is not known"):
        law.normalized_log_prob(v)
    law.log_normalizer = law.exact_log_normalizer()
    torch.testing.assert_close(law.normalized_log_prob(v), law.log_prob(v) - law.log_normalizer)
    assert law.expand([2]).log_normalizer == law.log_normalizer
    with pytest.raises(ValueError, match="log_normalizer must be finite"):
        law.log_normalizer = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.log_normalizer("ais", num_temperatures=1), "num_temperatures must be an integer of at least 2"),
        (lambda r: r.log_normalizer("ais", num_chains=1), "num_chains must be an integer of at least 2"),
        (lambda r: r.log_normalizer("bridge"), "method must be 'ais' or 'exact'"),
        (lambda r: r.log_normalizer(direction="sideways"), "direction must be 'forward' or 'reverse'"),
        (
            lambda r: r.check_batch(torch.full((2, 4), 0.5)),
            r"8 values outside \{0, 1\}, which a Bernoulli visible unit",
        ),
        (lambda r: r.check_batch(torch.ones(2, 4).long()), "x must be floating point"),
        (lambda r: r.sample(0), "num_samples must be an integer of at least 1"),
        (lambda r: r.sample(3, initial=torch.zeros(2, 4).double()), "initial must hold num_samples = 3"),
        (lambda r: RBM(0, 3), "num_visible must be an integer of at least 1"),
        (lambda r: RBM(3, 2, "poisson"), "visible must be one of 'bernoulli', 'gaussian', 'categorical'"),
        (lambda r: RBM(3, 2, "categorical"), "num_categories must be an integer of at least 2"),
        (lambda r: RBM(3, 2, num_categories=3), "num_categories is for visible='categorical'"),
        (lambda r: RBM(3, 2, scale=2.0), "scale is for visible='gaussian'"),
        (lambda r: RBM(3, 2, "gaussian", scale=0.0), "scale must be positive and finite"),
        (lambda r: RBM(6, 2, event_shape=(2, 2)), "event_shape must have 6 elements"),
        (lambda r: RBM(2, 2, "categorical", num_categories=3, event_shape=(6,)), "event_shape of categorical units is"),
        (
            lambda r: RBM(2, 2, "categorical", num_categories=3).check_batch(torch.zeros(1, 2, 3)),
            "2 units that are not one-hot",
        ),
        (lambda r: RBMDistribution(torch.zeros(3, 2), torch.zeros(2), torch.zeros(2)), "weight must have shape"),
        (
            lambda r: RBMDistribution(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2), num_steps=0),
            "num_steps must be",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(make("bernoulli"))


def test_fit_refuses_data_that_are_not_binary():
    with pytest.raises(ValueError, match=r"outside \{0, 1\}"):
        pyro_dgm.fit(
            RBM(3, 2), torch.rand(10, 3), objective=pyro_dgm.infer.ContrastiveDivergence(), epochs=1, progress=False
        )
