"""Denoising score matching: the density of noisy data, at one level, many, and levels that the energy takes."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch import nn

import pyro_dgm
from pyro_dgm.distributions import EnergyDistribution
from pyro_dgm.infer import DenoisingScoreMatching
from pyro_dgm.models import EBM
from tests.infer.objectives.energies.gaussian import (
    F64,
    Program,
    Quadratic,
    gradients,
    minimise,
    relative_error,
    truth,
    within,
)


def test_one_level_recovers_the_covariance_of_noisy_data():
    _, covariance, x = truth()
    program = Program(Quadratic(torch.eye(5, dtype=F64)))
    energy = minimise(DenoisingScoreMatching(0.5), program, x)
    blurred = covariance + 0.25 * torch.eye(5, dtype=F64)
    assert relative_error(torch.linalg.inv(energy.symmetric), blurred) < 0.05
    # and not that of the data: the two are told apart
    assert relative_error(torch.linalg.inv(energy.symmetric), covariance) > 0.1


def test_gradient_in_closed_form():
    # E xi = 0 and E |s(x + sigma xi) sigma + xi|^2 / 2: for s(y) = b - A y it is quadratic in A and b.
    _, _, x = truth(3, 40)
    precision = torch.tensor([[2.0, 0.3, 0], [0.3, 1, 0.1], [0, 0.1, 0.5]], dtype=F64)
    program, sigma = Program(Quadratic(precision, torch.tensor([0.1, -0.2, 0.3], dtype=F64))), 0.7
    exact_program = Quadratic(precision, torch.tensor([0.1, -0.2, 0.3], dtype=F64))
    score = exact_program.linear - x @ exact_program.symmetric
    a = exact_program.symmetric
    noise_part = (torch.eye(3, dtype=F64) - sigma**2 * a).square().sum()  # sigma s + xi has (I - sigma^2 A) xi in it
    (0.5 * (sigma**2 * score.square().sum(-1) + noise_part)).mean().backward()
    exact = torch.cat([p.grad.flatten() for p in exact_program.parameters()])
    rows = gradients(DenoisingScoreMatching(sigma), program, x, 500)
    assert within(rows, exact, 4.0)
    assert exact.abs().min() > 0.005


def test_loss_by_hand_at_several_levels():
    program, x = Program(Quadratic(torch.eye(2, dtype=F64))), torch.randn(6, 2, dtype=F64)
    torch.manual_seed(3)
    found = DenoisingScoreMatching([1.0, 0.2])(program.model, program.guide)(x)
    torch.manual_seed(3)
    sigma = torch.tensor([1.0, 0.2], dtype=F64)[torch.randint(2, (6,))][:, None]
    xi = torch.randn_like(x)
    residual = 0.2**2 / sigma * -(x + sigma * xi) + xi  # tau is the lowest level
    torch.testing.assert_close(found, 0.5 * residual.square().sum())


class Conditional(nn.Module):
    """E(x, sigma) = |x|^2 / 2 (a + b sigma^2): a Gaussian of variance a blurred, where b = 1."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (1.0, 0.5))

    def forward(self, x, sigma):
        return 0.5 * x.square().sum(-1) / (self.a + self.b * sigma**2)


def test_an_energy_that_takes_the_level_learns_every_blur():
    torch.manual_seed(0)
    x = 1.5 * torch.randn(20_000, 2, dtype=F64)
    program = Program(Conditional(), noise_level=0.1)
    energy = minimise(DenoisingScoreMatching([0.3, 1.0, 2.0]), program, x)
    assert energy.a.item() == pytest.approx(2.25, rel=0.05)
    assert energy.b.item() == pytest.approx(1.0, rel=0.05)


def test_in_fit_with_images():
    torch.manual_seed(0)
    ebm, x = EBM((6, 6), "conv", (4, 8), base_scale=2.0), torch.rand(60, 6, 6)
    run = pyro_dgm.fit(
        ebm, x, objective=DenoisingScoreMatching(0.3), epochs=30, batch_size=20, validation=x, seed=0, progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )  # fmt: skip
    assert run.history["train"][-1] < run.history["train"][0]
    assert run.history["train"][-1] < 18  # better than an energy that says nothing, D / 2


def test_nonfinite_energies_are_named():
    def model(x):
        law = EnergyDistribution(lambda v: torch.where(v.sum(-1) > 3, math.nan, v.square().sum(-1)), (2,))
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    with pytest.raises(ValueError, match=r"the energy at site 'x' is nan at \d+ of 50 noisy data"):
        DenoisingScoreMatching(3.0)(model, lambda x: None)(torch.zeros(50, 2))


@pytest.mark.parametrize("levels", [0.0, -1.0, math.inf, [], [0.1, 0.0], ["a"]])
def test_bad_levels_are_named(levels):
    with pytest.raises(
        (TypeError, ValueError), match="noise_levels must be (positive and finite, at least one|a number)"
    ):
        DenoisingScoreMatching(levels)
