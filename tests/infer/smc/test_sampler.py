"""Sequential Monte Carlo samplers: temperatures, resampling, normaliser and its standard error."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer.mcmc import MALA
from pyro_dgm.infer.smc import SMCSampler
from pyro_dgm.infer.smc.resampling import conditional_ess, next_temperature, systematic
from tests.infer.smc.test_ais import EXACT, MEAN, PRECISION, log_f, start


def test_normaliser_and_draws_of_a_gaussian():
    found = SMCSampler(start(), log_f).run(1000, seed=0)
    assert abs(float(found) - EXACT) < 4 * float(found.standard_error)
    assert found.betas[0] == 0 and found.betas[-1] == 1
    assert (found.betas.diff() > 0).all()
    assert 10 < found.ancestors < 1000
    w = found.log_weights.softmax(0)
    mean = (w[:, None] * found.samples).sum(0)
    sd = PRECISION.inverse().diagonal().sqrt()
    assert ((mean - MEAN).abs() < 5 * sd / float(found.ess) ** 0.5).all()
    # the weights of the final population carry log Z
    assert float(found.log_weights.logsumexp(0) - math.log(1000)) == pytest.approx(float(found))
    assert "forward smc, ESS" in repr(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel": MALA(), "target_ess": 0.7},
        pytest.param({}, marks=pytest.mark.slow),
        {"kernel": MALA(), "resample_at": 1.0, "target_ess": 0.95},
    ],
)
def test_standard_error_is_the_spread_over_runs(settings):
    sampler = SMCSampler(start(), log_f, **settings)
    runs = [sampler.run(150, seed=s) for s in range(40)]
    values = torch.tensor([float(r) for r in runs])
    claimed = torch.stack([r.standard_error for r in runs]).square().mean().sqrt()
    # 40 runs know a standard deviation to 11 per cent.
    assert abs(float(values.std() / claimed) - 1) < 0.4
    assert abs(float(values.mean()) - EXACT) < 4 * float(values.std()) / 40**0.5


def test_next_temperature_meets_its_target():
    log_w = torch.randn(200, dtype=torch.float64).log_softmax(0)
    slope = 30 * torch.randn(200, dtype=torch.float64)
    beta = next_temperature(log_w, slope, 0.2, 0.7)
    assert float(conditional_ess(log_w, -(beta - 0.2) * slope)) == pytest.approx(0.7, abs=0.01)
    assert next_temperature(log_w, 1e-3 * slope, 0.2, 0.7) == 1.0
    # against its formula
    w, u = log_w.exp(), (-0.01 * slope).exp()
    assert float(conditional_ess(log_w, -0.01 * slope)) == pytest.approx(float((w * u).sum() ** 2 / (w * u**2).sum()))


def test_systematic_resampling_rounds_expected_numbers():
    log_w = torch.randn(50, dtype=torch.float64)
    expected = 50 * log_w.softmax(0)
    counts = torch.stack([systematic(log_w, torch.rand(())).bincount(minlength=50) for _ in range(500)])
    assert (counts >= expected.floor()).all() and (counts <= expected.ceil()).all()
    error = (expected.frac() * (1 - expected.frac()) / 500).sqrt()
    assert ((counts.double().mean(0) - expected).abs() < 5 * error + 1e-9).all()


def test_weights_of_modes():
    # A start that covers both modes keeps their masses, 1 : 3.
    far = torch.tensor(3.0, dtype=torch.float64)

    def log_p(x):
        return torch.logaddexp(-2 * (x + far).square().sum(-1), math.log(3.0) - 2 * (x - far).square().sum(-1))

    initial = dist.Normal(torch.zeros(1, dtype=torch.float64), 4.0).to_event(1)
    found = SMCSampler(initial, log_p).run(3000, seed=1)
    share = (found.log_weights.softmax(0) * (found.samples[:, 0] > 0)).sum()
    assert abs(float(share) - 0.75) < 0.06
    exact = math.log(4.0) + 0.5 * math.log(math.pi / 2)
    assert abs(float(found) - exact) < 4 * float(found.standard_error)


def test_bad_input_is_named():
    for arguments, message in (
        ({"target_ess": 1.0}, "target_ess must be in"),
        ({"resample_at": 0.0}, "resample_at must be in"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SMCSampler(start(), log_f, **arguments)
    with pytest.raises(ValueError, match="num_particles must be an integer of at least 2"):
        SMCSampler(start(), log_f).run(1)
    with pytest.raises(ValueError, match="is NaN or plus infinite for"):
        SMCSampler(start(), lambda x: torch.where(x[:, 0] > 0, log_f(x), math.nan)).run(20, seed=0)
    with pytest.raises(ValueError, match="after max_temperatures = 3"):
        SMCSampler(start(), lambda x: 50 * log_f(x), max_temperatures=3).run(50, seed=0)
    with pytest.raises(ValueError, match="every particle's weight is zero"):
        SMCSampler(start(), lambda x: torch.full((len(x),), -math.inf, dtype=x.dtype) + 0 * x.sum(-1)).run(20, seed=0)
