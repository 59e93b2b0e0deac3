"""Neural autoregressive flows: the mixture of sigmoids, its tails and bracket, and a density that is normalised."""

import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.distributions import transforms as t


def drawn(family, n, spread=1.0):
    return torch.randn(n, family.num_parameters, dtype=torch.float64) * spread


def test_one_layer_by_its_definition():
    family = t.SigmoidalFamily(5).double()
    parameters, x = drawn(family, 40), torch.linspace(-4, 4, 40, dtype=torch.float64)
    raw = parameters.reshape(40, 3, 5)
    one = torch.tensor(1.0, dtype=torch.float64).expm1().log()
    slopes = 1e-3 + (1 - 1e-3) * torch.log1p((raw[:, 0] + one).exp())
    offsets = raw[:, 1] + torch.linspace(-1, 1, 5, dtype=torch.float64)
    x = x.clone().requires_grad_()
    expected = (raw[:, 2].softmax(-1) * torch.sigmoid(slopes * x[:, None] + offsets)).sum(-1).logit()
    y, log_slope = family(x, parameters)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_there_and_back_far_into_the_tails(num_layers):
    """It is onto the real line: no value is out of reach, however large."""
    family = t.SigmoidalFamily(4, num_layers).double()
    parameters = drawn(family, 200)
    y = torch.cat([torch.linspace(-10, 10, 100), torch.logspace(0, 6, 50), -torch.logspace(0, 6, 50)]).double()
    x, log_slope = family.inverse(y, parameters)
    back, back_log_slope = family(x, parameters)
    torch.testing.assert_close(back, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back_log_slope, -log_slope, rtol=1e-7, atol=1e-7)


def test_tails_are_straight_lines_of_the_flattest_unit():
    family = t.SigmoidalFamily(3).double()
    parameters = drawn(family, 1)[0]
    one = torch.tensor(1.0, dtype=torch.float64).expm1().log()
    flattest = (1e-3 + (1 - 1e-3) * torch.log1p((parameters[:3] + one).exp())).min()
    for side in (-1e3, 1e3):
        x = torch.tensor([side, 2 * side], dtype=torch.float64)
        y, log_slope = family(x, parameters.expand(2, -1))
        torch.testing.assert_close(log_slope.exp(), flattest.expand(2), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(y[1] - y[0], flattest * side, rtol=1e-9, atol=1e-6)


def test_single_precision_is_as_good_far_out():
    family = t.SigmoidalFamily(4, 2)
    parameters = drawn(family, 11)
    x = torch.tensor([0, 1e-3, 1, 10, 88, 100, 1e3, 1e4, 1e5, 1e6, -1e6], dtype=torch.float64)
    y, log_slope = family.double()(x, parameters)
    y32, log_slope32 = family.float()(x.float(), parameters.float())
    torch.testing.assert_close(y32.double(), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_slope32.double(), log_slope, rtol=1e-4, atol=1e-4)


def test_the_density_of_a_deep_one_integrates_to_one_in_one_dimension():
    """By the trapezoidal rule on a fine grid, to 1e-6: a map that is not onto would lose mass."""
    torch.manual_seed(3)
    flow = t.NeuralAutoregressive(1, num_units=6, num_layers=3, hidden=()).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(torch.randn_like(p) * 1.5)
    base = dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1)
    at = torch.linspace(-10, 10, 50_001, dtype=torch.float64)
    y = at.sinh()[:, None]  # to 11 000 on both sides
    # The flow from data to noise: its density needs no inverse.
    density = dist.TransformedDistribution(base, [flow.inv]).log_prob(y).exp()
    assert torch.trapezoid(density * at.cosh(), at).item() == pytest.approx(1.0, abs=1e-6)


def test_wrong_arguments_are_refused():
    for name in ("num_units", "num_layers"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            t.NeuralAutoregressive(3, **{name: 0})
