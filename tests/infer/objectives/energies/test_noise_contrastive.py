"""Noise-contrastive estimation: log Z learnt, its gradient, its noise."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

import pyro_dgm
from pyro_dgm.distributions import EnergyDistribution
from pyro_dgm.infer import NoiseContrastive
from pyro_dgm.models import EBM
from tests.infer.objectives.energies.gaussian import (
    F64,
    Program,
    Quadratic,
    gaussian_log_z,
    gradients,
    minimise,
    relative_error,
    truth,
    within,
)


def test_log_normalizer_of_a_gaussian_within_a_twentieth():
    mean, covariance, x = truth()
    noise = dist.Normal(x.mean(0), 1.3 * x.std(0)).to_event(1)
    program, nce = Program(Quadratic(torch.eye(5, dtype=F64))), NoiseContrastive(noise=noise, num_noise=2)
    energy = minimise(nce, program, x, iterations=100)
    exact = gaussian_log_z(energy.symmetric.detach(), energy.linear.detach())
    assert abs(float(nce.log_normalizer) - exact) < 0.05
    assert relative_error(energy.symmetric, torch.linalg.inv(covariance)) < 0.05
    # The truth's own: of exp(-(x - m)' A (x - m) / 2), for with a linear term in place of the mean, as here, log Z
    # is 33.9 and hangs on errors of the mean far from the origin: maximum likelihood's own has a standard deviation
    # of 0.17 over samples of this size.
    precision = torch.linalg.inv(covariance)
    found, linear = energy.symmetric.detach(), energy.linear.detach()
    centred = float(nce.log_normalizer - 0.5 * linear @ torch.linalg.solve(found, linear))
    assert abs(centred - gaussian_log_z(precision, torch.zeros(5, dtype=F64))) < 0.05
    assert abs(float(nce.log_normalizer) - gaussian_log_z(precision, precision @ mean)) < 0.3


def test_gradient_is_nought_in_expectation_at_the_truth():
    # The true density with its true log Z is the optimum of the population's loss, in the parameters and in c.
    torch.manual_seed(0)
    noise = dist.Normal(torch.zeros(2, dtype=F64), 1.5).to_event(1)
    exact = gaussian_log_z(torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64))
    rows = []
    for i in range(300):
        program, nce = Program(Quadratic(torch.eye(2, dtype=F64))), NoiseContrastive(3, noise, exact)
        torch.manual_seed(i)
        nce(program.model, program.guide)(torch.randn(50, 2, dtype=F64)).backward()
        rows.append(torch.cat([p.grad.flatten() for p in [*program.parameters(), *nce.parameters()]]))
    assert within(torch.stack(rows), 0.0, 4.0)


def test_gradient_in_closed_form():
    # One datum at a time, noise integrated on a grid: d/dc of the loss is sigma(-G(x)) - nu E_q sigma(G(y)).
    program = Program(Quadratic(torch.tensor([[2.0]], dtype=F64), torch.tensor([0.3], dtype=F64)))
    noise, x = dist.Normal(torch.zeros(1, dtype=F64), 1.5).to_event(1), torch.tensor([[0.4], [-1.0]], dtype=F64)
    grid = torch.linspace(-12, 12, 40_001, dtype=F64)[:, None]
    weight = noise.log_prob(grid).exp() * (grid[1, 0] - grid[0, 0])

    def g(v):
        return program.distribution(1).log_prob(v) - 0.2 - noise.log_prob(v) - math.log(2)

    loss = -torch.nn.functional.logsigmoid(g(x)).mean() - 2 * (weight * torch.nn.functional.logsigmoid(-g(grid))).sum()
    exact = torch.cat([v.flatten() for v in torch.autograd.grad(loss, list(program.parameters()))])
    rows = gradients(NoiseContrastive(2, noise, 0.2), program, x, 800)
    assert within(rows, exact, 4.0)
    assert exact.abs().min() > 0.02


def test_loss_by_hand():
    program, x = Program(Quadratic(torch.eye(2, dtype=F64))), torch.randn(6, 2, dtype=F64)
    noise = dist.Normal(torch.zeros(2, dtype=F64), 2.0).to_event(1)
    torch.manual_seed(1)
    found = NoiseContrastive(3, noise, 0.7)(program.model, program.guide)(x)
    torch.manual_seed(1)
    y = noise.sample((18,))
    odds = [-0.5 * v.square().sum(-1) - 0.7 - noise.log_prob(v) - math.log(3) for v in (x, y)]
    torch.testing.assert_close(found, -odds[0].sigmoid().log().sum() - (-odds[1]).sigmoid().log().sum())


def test_log_normalizer_begins_at_an_importance_estimate():
    torch.manual_seed(0)
    program = Program(Quadratic(torch.eye(2, dtype=F64)))
    nce = NoiseContrastive(noise=dist.Normal(torch.zeros(2, dtype=F64), 1.2).to_event(1))
    with pytest.raises(ValueError, match="no log normaliser before"):
        _ = nce.log_normalizer
    nce(program.model, program.guide)(torch.randn(5000, 2, dtype=F64))
    assert abs(float(nce.log_normalizer) - math.log(2 * math.pi)) < 0.05


def test_fit_trains_log_z_beside_the_network_and_resumes(tmp_path):
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + 1
    found = []
    for stops in ([4], [2, 4]):
        for i, epochs in enumerate(stops):
            torch.manual_seed(0)
            ebm, nce = EBM((2,), hidden=(8,), base=None), NoiseContrastive(num_noise=2)
            pyro_dgm.fit(
                ebm, x, objective=nce, epochs=epochs, batch_size=20, seed=1, progress=False, validation=x,
                optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
                checkpoint_dir=tmp_path / str(len(stops)), resume=True if i else None,
            )  # fmt: skip
        found.append((nce.log_normalizer, ebm.energy.layers[0].weight.detach(), nce.state_dict()["fitted"][0]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    start = NoiseContrastive(num_noise=2)
    torch.manual_seed(0)
    ebm = EBM((2,), hidden=(8,), base=None)
    start(ebm.model, ebm.guide)(x)
    assert abs(float(found[0][0]) - float(start.log_normalizer)) > 0.05


def test_in_pyros_svi():
    torch.manual_seed(0)
    ebm, x, nce = EBM((2,), hidden=(8,)), torch.randn(100, 2), NoiseContrastive()
    svi = SVI(ebm.model, ebm.guide, pyro.optim.Adam({"lr": 0.02}), nce)
    svi.step(x)
    before = nce.log_normalizer
    for _ in range(20):
        svi.step(x)
    assert not torch.equal(nce.log_normalizer, before)
    assert not pyro.get_param_store()


def test_noise_is_the_base_by_default():
    torch.manual_seed(0)
    ebm = EBM((2,), hidden=(8,), base_loc=50.0)
    nce = NoiseContrastive()
    loss = nce(ebm.model, ebm.guide)(torch.randn(10, 2))
    assert nce.state_dict()["fitted"] is None
    assert loss.item() > 100  # data that the noise nearly never gives look like data, log odds of thousands


def test_another_program_begins_anew():
    torch.manual_seed(0)
    nce, x = NoiseContrastive(), torch.randn(40, 2)
    first, second = EBM((2,), base=None), EBM((2,), base=None)
    nce(first.model, first.guide)(x)
    held = nce.learned
    nce(first.model, first.guide)(x)
    assert nce.learned is held
    nce(second.model, second.guide)(x)
    assert nce.learned is not held
    assert torch.equal(copy.deepcopy(nce).log_normalizer, nce.log_normalizer)


def energy_model(energy):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", EnergyDistribution(energy, (1,)), obs=x)

    return model


def test_nonfinite_energies_are_named():
    x = torch.randn(20, 1)
    with pytest.raises(ValueError, match=r"the energy at site 'x' is nan at 20 of 20 noise draws"):
        NoiseContrastive()(energy_model(lambda v: v.sum(-1) * math.nan), lambda x: None)(x)
    with pytest.raises(ValueError, match=r"the energy at site 'x' is inf at \d+ of 20 data"):
        NoiseContrastive(noise=dist.Uniform(torch.zeros(1), 1.0).to_event(1))(
            energy_model(lambda v: torch.where(v.sum(-1) < 0, math.inf, v.sum(-1))), lambda x: None
        )(x)
    with pytest.raises(ValueError, match=r"noise's log-density is -inf at \d+ of 20 data of site 'x'"):
        NoiseContrastive(noise=dist.Uniform(torch.zeros(1), 1.0, validate_args=False).to_event(1))(
            energy_model(lambda v: v.square().sum(-1)), lambda x: None
        )(x)
    with pytest.raises(ValueError, match="constant in 1 of 1 elements"):
        NoiseContrastive()(energy_model(lambda v: v.square().sum(-1)), lambda x: None)(torch.ones(5, 1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NoiseContrastive(num_noise=0), ValueError, "num_noise must be an integer of at least 1"),
        (lambda: NoiseContrastive(noise=3), TypeError, "noise must be a distribution, got int"),
        (lambda: NoiseContrastive(log_normalizer=math.nan), ValueError, "log_normalizer must be finite"),
        (
            lambda: NoiseContrastive(noise=dist.Normal(torch.zeros(2), 1.0))(energy_model(torch.sum), lambda x: None)(
                torch.randn(3, 1)
            ),
            ValueError,
            r"noise must have event shape \(1,\) and no batch dimensions",
        ),
    ],
)
def test_bad_settings_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
