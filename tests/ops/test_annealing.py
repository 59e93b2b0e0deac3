"""Annealing as a recursion, its schedules, and what is said of its weights, against exact answers."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_dgm.ops import (
    LogNormalizer,
    anneal,
    annealing_schedule,
    binary_states,
    log_mean_exp,
    log_mean_exp_error,
    log_sum_over_binary,
)
from pyro_dgm.ops.binary import draw_binary


def gaussian_path(wide, narrow):
    """Unnormalised N(0, 1 / precision) along a path of precisions, with exact transitions."""

    def log_f(x, beta):
        return -0.5 * ((1 - beta) * wide + beta * narrow) * x.square()

    def reweight(x, previous, beta):
        return x, log_f(x, beta) - log_f(x, previous)

    def move(x, beta):
        return torch.randn_like(x) / ((1 - beta) * wide + beta * narrow) ** 0.5

    return reweight, move


def test_weights_have_the_ratio_of_normalisers_as_mean_in_both_directions():
    wide, narrow = 0.25, 4.0
    reweight, move = gaussian_path(wide, narrow)
    betas = annealing_schedule("linear", 30)
    exact = 0.5 * math.log(wide / narrow)
    x = torch.randn(4000, dtype=torch.float64)
    _, forward = anneal(x / wide**0.5, betas, reweight, move)
    _, reverse = anneal(x / narrow**0.5, betas.flip(0), reweight, move)
    assert abs(log_mean_exp(forward) - exact) < 4 * log_mean_exp_error(forward)
    assert abs(-log_mean_exp(reverse) - exact) < 4 * log_mean_exp_error(reverse)
    # Jensen: each chain's own logarithm is on its side, by far more than the noise
    assert forward.mean() < exact - 3 * forward.std() / 4000**0.5
    assert -reverse.mean() > exact + 3 * reverse.std() / 4000**0.5


def test_one_interval_is_importance_sampling():
    reweight, move = gaussian_path(1.0, 2.0)
    x = torch.randn(50, dtype=torch.float64)
    last, log_w = anneal(x, torch.tensor([0.0, 1.0]), reweight, move)
    assert torch.equal(last, x)
    torch.testing.assert_close(log_w, -0.5 * x.square())


def test_weights_are_accumulated_in_double():
    _, log_w = anneal(
        torch.zeros(3), torch.linspace(0, 1, 1001), lambda x, a, b: (x, torch.full((3,), 1e-3)), lambda x, b: x
    )
    assert log_w.dtype == torch.float64
    torch.testing.assert_close(log_w, torch.full((3,), 1000 * float(torch.tensor(1e-3)), dtype=torch.float64))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_energy_is_named_with_its_temperature(value):
    def reweight(x, previous, beta):
        return x, torch.where(torch.arange(4) < (1 if beta > 0.5 else 0), value, 0.0)

    with pytest.raises(ValueError, match=r"log weights of 1 of 4 chains are not finite between .* 0\.5 and 0\.6:"):
        anneal(torch.zeros(4), torch.linspace(0, 1, 501), reweight, lambda x, b: x)


def test_schedules():
    assert annealing_schedule("linear", 2).tolist() == [0.0, 1.0]
    betas = annealing_schedule("rbm", 14_501)
    assert betas[500] == pytest.approx(0.5)
    assert betas[4500] == pytest.approx(0.9)
    assert (betas.diff() > 0).all()
    assert float(betas[100]) == pytest.approx(0.1)
    curve = annealing_schedule("sigmoidal", 101)
    assert curve[50] == pytest.approx(0.5)
    torch.testing.assert_close(curve, 1 - curve.flip(0))
    raw = torch.sigmoid(4 * (2 * torch.linspace(0, 1, 101, dtype=torch.float64) - 1))
    torch.testing.assert_close(curve, (raw - raw[0]) / (raw[-1] - raw[0]))
    given = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(annealing_schedule(given, 0), given.double())


@pytest.mark.parametrize(
    ("schedule", "count", "message"),
    [
        ("linear", 1, "num_temperatures must be an integer of at least 2"),
        ("linear", 2.5, "num_temperatures must be an integer of at least 2"),
        ("cosine", 10, "schedule must be 'linear'"),
        (lambda u: u / 2, 10, "schedule must rise from 0 to 1, got 0 to 0.5"),
        (torch.tensor([0.0, 0.8, 0.5, 1.0]), 4, "schedule must rise from 0 to 1"),
    ],
)
def test_bad_schedules_are_named(schedule, count, message):
    with pytest.raises((TypeError, ValueError), match=message):
        annealing_schedule(schedule, count)


def test_standard_error_is_the_spread():
    log_w = 0.8 * torch.randn(400, 500, dtype=torch.float64)
    estimates, errors = log_mean_exp(log_w), log_mean_exp_error(log_w)
    assert estimates.std() == pytest.approx(float(errors.square().mean().sqrt()), rel=0.15)
    w = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert float(log_mean_exp_error(w.log())) == pytest.approx(float(w.std()) / 3**0.5 / 3.0)
    with pytest.raises(ValueError, match="at least 2 draws"):
        log_mean_exp_error(torch.zeros(1))


def test_low_ess_is_warned_of_and_the_others_are_not():
    one_holds_all = torch.zeros(100)
    one_holds_all[0] = 30.0
    with pytest.warns(RuntimeWarning, match=r"effective sample size of the forward weights is 1\.0 of 100 draws"):
        LogNormalizer.of_weights(one_holds_all, 0.0, "forward", None)
    with pytest.warns(RuntimeWarning, match="for 1 of 2 data"):
        LogNormalizer.of_weights(torch.stack([one_holds_all, torch.zeros(100)], 1), 0.0, "forward", None)
    fine = LogNormalizer.of_weights(torch.randn(100), 2.0, "reverse", None)
    assert "reverse ais, ESS" in repr(fine)
    assert float(fine) == pytest.approx(2.0 - float(log_mean_exp(fine.log_weights)))
    with pytest.raises(ValueError, match="every chain's weight is zero"):
        LogNormalizer.of_weights(torch.full((3,), -math.inf), 0.0, "forward", None)


def test_binary_sums():
    states = torch.cat(list(binary_states(5, chunk_size=7)))
    assert states.shape == (32, 5)
    assert len(states.unique(dim=0)) == 32
    w = torch.randn(5, dtype=torch.float64)
    found = log_sum_over_binary(lambda h: h @ w, 5, w, chunk_size=3)
    torch.testing.assert_close(found, torch.nn.functional.softplus(w).sum())
    with pytest.raises(ValueError, match="length must be from 0 to 20"):
        next(binary_states(21))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_draws_have_their_probabilities(dtype):
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0, -200.0, 200.0], dtype=dtype, requires_grad=True)
    before = logits.detach().clone()
    x = draw_binary(logits.expand(40_000, -1))
    assert torch.equal(logits, before)
    assert x.dtype == dtype and not x.requires_grad
    assert bool(((x == 0) | (x == 1)).all())
    chance = before.double().sigmoid()
    error = (chance * (1 - chance) / 40_000).sqrt()
    assert ((x.double().mean(0) - chance).abs() <= 4.5 * error).all()
    pairs = (x[:, :5].double().T.corrcoef() - torch.eye(5, dtype=torch.float64)).abs()
    assert float(pairs.max()) < 4.5 / 200  # units are drawn apart from each other
