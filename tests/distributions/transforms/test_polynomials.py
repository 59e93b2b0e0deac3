"""Bernstein and sum-of-squares flows: closed forms, the identity, tails, and the symmetry of the start."""

import pytest
import torch
from torch.func import jvp

from pyro_dgm.distributions import transforms as t

FAMILIES = [t.BernsteinFamily(6, 3.0), t.BernsteinFamily(1, 3.0), t.SumOfSquaresFamily(2, 3, 3.0)]


def drawn(family, n, spread=1.0):
    return torch.randn(n, family.num_parameters, dtype=torch.float64) * spread


@pytest.mark.parametrize("degree", [1, 4, 10])
def test_bernstein_polynomials_by_their_definition(degree):
    family = t.BernsteinFamily(degree, 2.0).double()
    parameters = drawn(family, 1)[0]
    slopes = 1e-3 + (1 - 1e-3) * torch.log1p((parameters[:-1] + torch.tensor(1.0).exp().double().sub(1).log()).exp())
    theta = torch.cat([torch.zeros(1, dtype=torch.float64), slopes.cumsum(0) * 4 / degree])
    theta = theta - theta[-1] / 2 + parameters[-1]
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    z, k = ((x + 2) / 4)[:, None], torch.arange(degree + 1, dtype=torch.float64)
    log_choose = torch.lgamma(torch.tensor(degree + 1.0)) - torch.lgamma(k + 1) - torch.lgamma(degree - k + 1)
    expected = (log_choose.exp() * z**k * (1 - z) ** (degree - k) * theta).sum(-1)
    y, log_slope = family(x, parameters.expand(41, -1))
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    _, derivative = jvp(lambda v: family(v, parameters.expand(41, -1))[0], (x,), (torch.ones_like(x),))
    torch.testing.assert_close(log_slope[1:-1], derivative[1:-1].log(), rtol=1e-9, atol=1e-9)


def test_sums_of_squares_by_their_integral():
    """Against Gauss-Legendre quadrature of the squares, which is exact for polynomials of this degree."""
    numpy = pytest.importorskip("numpy")
    family = t.SumOfSquaresFamily(3, 2, 2.0).double()
    parameters = drawn(family, 1)[0]
    a = parameters[:-1].reshape(2, 4) + torch.tensor([[1.0, 0, 0, 0], [0, 0.1, 0, 0]], dtype=torch.float64)
    nodes, weights = (torch.as_tensor(v) for v in numpy.polynomial.legendre.leggauss(8))
    x = torch.linspace(-2, 2, 21, dtype=torch.float64)

    def slope(x):  # the powers are those of 2 u / bound
        powers = x[..., None] ** torch.arange(4)
        return 1e-3 + (1 - 1e-3) * (powers @ a.T).square().sum(-1)

    at = x[:, None] * (nodes + 1) / 2
    expected = parameters[-1] + (slope(at) * weights).sum(-1) * x / 2
    y, log_slope = family(x, parameters)
    torch.testing.assert_close(y, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(log_slope, slope(x).log(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES, ids=["bernstein", "straight", "squares"])
def test_tails_are_tangents_and_the_inverse_is_exact_on_both_sides(family):
    family = family.double()
    parameters = drawn(family, 200)
    x = torch.cat([torch.linspace(-20, 20, 190), torch.tensor([-3.0, 3.0, -3 - 1e-9, 3 + 1e-9, 0, 0, 0, 0, 1e3, -1e3])])
    x = x.double()
    y, log_slope = family(x, parameters)
    back, back_log_slope = family.inverse(y, parameters)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back_log_slope, -log_slope, rtol=1e-6, atol=1e-6)
    end = torch.full((200,), 3.0, dtype=torch.float64)
    at_end, log_slope_at_end = family(end, parameters)
    beyond, log_slope_beyond = family(end + 7, parameters)
    torch.testing.assert_close(beyond, at_end + 7 * log_slope_at_end.exp(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_slope_beyond, log_slope_at_end, rtol=0, atol=0)


def test_parameters_of_zero_give_the_identity_or_nearly():
    x = torch.linspace(-8, 8, 50, dtype=torch.float64)
    for family, tolerance in ((t.BernsteinFamily(7), 1e-12), (t.SumOfSquaresFamily(), 0.2)):
        y, _ = family.double()(x, torch.zeros(50, family.num_parameters, dtype=torch.float64))
        torch.testing.assert_close(y, x, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "family", [t.SumOfSquaresFamily(2, 2), t.SigmoidalFamily(4), t.SigmoidalFamily(3, 2)], ids=["sos", "one", "two"]
)
def test_no_two_units_start_with_the_same_gradient(family):
    """Otherwise they would stay the same function for ever, since networks give all of them zero at the start."""
    x = torch.randn(50, dtype=torch.float64)
    parameters = torch.zeros(family.num_parameters, dtype=torch.float64, requires_grad=True)
    y, log_slope = family.double()(x, parameters.expand(50, -1))
    ((y**3).sum() + (log_slope * x).sum()).backward()
    units = 2 if isinstance(family, t.SumOfSquaresFamily) else family.num_units
    gradients = parameters.grad
    if isinstance(family, t.SumOfSquaresFamily):
        rows = gradients[:-1].reshape(units, -1)
    else:
        rows = gradients.reshape(family.num_layers, 3, units).movedim(-1, 0).flatten(1)
    directions = rows / rows.norm(dim=-1, keepdim=True)
    assert (rows.norm(dim=-1) > 1e-3).all()
    assert torch.pdist(directions).min() > 1e-3


def test_wrong_arguments_are_refused():
    for kind in (t.Bernstein, t.SumOfSquares):
        with pytest.raises(ValueError, match="bound must be positive"):
            kind(3, bound=0.0)
        with pytest.raises(ValueError, match="degree must be"):
            kind(3, degree=0)
    with pytest.raises(ValueError, match="num_polynomials must be"):
        t.SumOfSquares(3, num_polynomials=0)
