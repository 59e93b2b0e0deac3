"""Levels and cells: maps against autograd's Jacobian, densities against their definition."""

import math

import pytest
import torch
from torch.distributions import biject_to

from pyro_dgm.distributions.dequantization import IntoCell, IntoLevels, Quantized, UniformCell

MAPS = {
    "levels": IntoLevels((2, 2), 16),
    "cells": IntoCell(torch.tensor([[0.0, 3.0], [15.0, 1.0]], dtype=torch.float64), 2),
}


@pytest.mark.parametrize("name", list(MAPS))
def test_maps(name):
    t, x = MAPS[name], 3 * torch.randn(5, 2, 2, dtype=torch.float64)
    y, log_det = t.forward_and_log_det(x)
    back, back_log_det = t.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(back_log_det, -log_det)
    assert t.codomain.check(y).all() and t.codomain.check(biject_to(t.codomain)(x)).all()
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda v: t(v[None])[0], x[i]).reshape(4, 4)
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet)
    assert not t.codomain.check(y - 20).any()


def test_the_levels_fill_the_interval():
    y = IntoLevels(1, 256)(torch.tensor([[-40.0], [0.0], [40.0]], dtype=torch.float64)).flatten()
    torch.testing.assert_close(y, torch.tensor([0.0, 128.0, 256.0], dtype=torch.float64), rtol=0, atol=3e-4)


def test_extremes_in_single_precision_are_finite():
    for t in (IntoLevels(1, 256), IntoCell(torch.tensor([255.0]), 1)):
        x = torch.tensor([[-1e6], [1e6], [-30.0], [30.0]], requires_grad=True)
        y, log_det = t.forward_and_log_det(x)
        assert torch.isfinite(y).all() and torch.isfinite(log_det).all()
        (y.sum() + log_det.sum()).backward()
        assert torch.isfinite(x.grad).all()
        back, back_log_det = t.inverse_and_log_det(torch.tensor([[0.0], [255.0], [256.0]]))
        assert torch.isfinite(back).all() and torch.isfinite(back_log_det).all()


def test_uniform_cells():
    lower = torch.tensor([[3.0, 0.0], [1.0, 7.0]])
    cell = UniformCell(lower, 1)
    torch.manual_seed(0)
    draws = cell.rsample((5000,))
    assert (cell.batch_shape, cell.event_shape) == ((2,), (2,))
    assert cell.expand((4, 2)).rsample().shape == (4, 2, 2)
    assert (cell.log_prob(draws) == 0).all() and cell.support.check(draws).all()
    assert ((draws.mean(0) - lower - 0.5) * (12 * 5000) ** 0.5).abs().max() < 4
    assert cell.log_prob(torch.tensor([[3.5, -0.1], [1.0, 8.0]])).tolist() == [-math.inf, 0.0]


def test_levels_of_values():
    value = torch.tensor([[3.2, 7.99], [-0.5, 9.0]])
    level = Quantized(value, 8, 1)
    assert level.sample().tolist() == [[3.0, 7.0], [0.0, 7.0]]
    assert level.log_prob(torch.tensor([[3, 7], [0, 7]])).tolist() == [0.0, -math.inf]
    assert level.log_prob(torch.tensor([[3, 6], [0, 7]]))[0] == -math.inf
    assert level.expand((3, 2)).sample().shape == (3, 2, 2)
    assert level.support.check(level.sample()).all()
