"""Sliced score matching: unbiased for the exact loss, with either second term and any law of directions."""

from __future__ import annotations

import pytest
import torch

from pyro_dgm.infer import ScoreMatching, SlicedScoreMatching
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

DIRECTIONS = SlicedScoreMatching.DIRECTIONS


@pytest.mark.parametrize("reduced", [True, False], ids=["reduced", "plain"])
def test_precision_of_a_gaussian_within_five_per_cent(reduced):
    _, covariance, x = truth()
    program = Program(Quadratic(torch.eye(5, dtype=F64)))
    energy = minimise(SlicedScoreMatching(num_slices=2, variance_reduction=reduced), program, x)
    assert relative_error(energy.symmetric, torch.linalg.inv(covariance)) < 0.05


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("reduced", [True, False], ids=["reduced", "plain"])
def test_gradient_is_that_of_score_matching_in_expectation(directions, reduced):
    torch.manual_seed(0)
    ebm = EBM((3,), hidden=(5,)).double()
    x = torch.randn(16, 3, dtype=F64)
    exact = gradients(ScoreMatching(), ebm, x, 1)[0]
    rows = gradients(SlicedScoreMatching(4, directions, reduced), ebm, x, 150)
    assert within(rows, exact, 4.0)
    assert exact.abs().max() > 0.1


def test_loss_by_hand():
    precision = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)
    program, x = Program(Quadratic(precision)), torch.randn(6, 2, dtype=F64)
    for reduced in (True, False):
        objective = SlicedScoreMatching(3, "normal", reduced)
        torch.manual_seed(2)
        found = objective(program.model, program.guide)(x)
        torch.manual_seed(2)
        v = objective.draw(x)
        score = -x @ precision
        square = score.square().sum(-1) if reduced else (v * score).sum(-1).square().mean(0)
        curvature = -((v @ precision) * v).sum(-1).mean(0)
        torch.testing.assert_close(found, (0.5 * square + curvature).sum())


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_directions_have_the_identity_as_second_moment(directions):
    torch.manual_seed(0)
    v = SlicedScoreMatching(100, directions).draw(torch.zeros(400, 3, dtype=F64)).reshape(-1, 3)
    moments = v.mT @ v / len(v)
    assert (moments - torch.eye(3, dtype=F64)).abs().max() < 4.5 * (2 / len(v)) ** 0.5
    assert v.mean(0).abs().max() < 4.5 / len(v) ** 0.5


def test_variance_reduction_reduces_variance():
    torch.manual_seed(0)
    ebm, x = EBM((6,), hidden=(8,)).double(), 2 * torch.randn(16, 6, dtype=F64)
    spread = [gradients(SlicedScoreMatching(1, "normal", r), ebm, x, 100).var(0).sum() for r in (True, False)]
    assert spread[0] < 0.7 * spread[1]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="num_slices must be an integer of at least 1, got 0"):
        SlicedScoreMatching(0)
    with pytest.raises(ValueError, match="directions must be one of 'rademacher', 'normal', 'sphere', got 'cube'"):
        SlicedScoreMatching(directions="cube")
