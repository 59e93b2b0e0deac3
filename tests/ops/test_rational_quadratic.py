"""The rational-quadratic spline against its definition, autograd and its own inverse."""

import math

import pyro
import pytest
import torch
from torch._inductor import metrics
from torch.func import hessian, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_dgm.capture.static_graph import record
from pyro_dgm.ops.rational_quadratic import rational_quadratic

BINS, BOUND = 5, 3.0
kinds = pytest.mark.parametrize("circular", [False, True])


def given(count, circular=False, spread=2.0, dtype=torch.float64):
    torch.manual_seed(1)
    inside = (torch.rand(count, dtype=dtype) * 2 - 1) * BOUND
    return inside, torch.randn(count, 3 * BINS - (not circular), dtype=dtype) * spread


def spline(x, parameters, **options):
    return rational_quadratic(x, parameters, BINS, bound=BOUND, **options)


def by_definition(x, parameters, circular, min_size=1e-3, min_slope=1e-3):
    """Equations 4 and 5 of the paper for one number, with plain Python numbers and a search of the bin."""
    widths, heights = (
        (min_size + (1 - min_size * BINS) * logits.softmax(0)) * 2 * BOUND
        for logits in parameters[: 2 * BINS].reshape(2, BINS)
    )
    offset = math.log(math.exp(1 - min_slope) - 1)
    slopes = [min_slope + math.log1p(math.exp(raw + offset)) for raw in parameters[2 * BINS :].tolist()]
    slopes = [*slopes, slopes[0]] if circular else [1.0, *slopes, 1.0]
    left, bottom = -BOUND, -BOUND
    for k in range(BINS):
        w, h = widths[k].item(), heights[k].item()
        if x < left + w or k == BINS - 1:
            break
        left, bottom = left + w, bottom + h
    s, xi = h / w, (x - left) / w
    below = s + (slopes[k + 1] + slopes[k] - 2 * s) * xi * (1 - xi)
    value = bottom + h * (s * xi**2 + slopes[k] * xi * (1 - xi)) / below
    slope = s**2 * (slopes[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slopes[k] * (1 - xi) ** 2) / below**2
    return value, math.log(slope)


@kinds
def test_the_value_is_that_of_the_definition(circular):
    x, p = given(60, circular)
    y, log_slope = spline(x, p, circular=circular)
    expected = torch.tensor([by_definition(x[i].item(), p[i], circular) for i in range(60)], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([y, log_slope], 1), expected, rtol=1e-10, atol=1e-10)


@kinds
def test_inverse(circular):
    x, p = given(4000, circular)
    y, log_slope = spline(x, p, circular=circular)
    back, back_log_slope = spline(y, p, circular=circular, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(back_log_slope, -log_slope, rtol=0, atol=1e-7)


@kinds
@pytest.mark.parametrize("inverse", [False, True])
def test_the_log_derivative_is_that_of_autograd(circular, inverse):
    x, p = given(500, circular, spread=1.0)
    x.requires_grad_()
    y, log_slope = spline(x, p, circular=circular, inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)


@kinds
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_are_those_of_differences(circular, inverse):
    x, p = given(12, circular, spread=1.0)
    x.requires_grad_(), p.requires_grad_()
    options = {"circular": circular, "inverse": inverse}
    assert torch.autograd.gradcheck(lambda a, b: spline(a, b, **options), (x, p), eps=1e-6, atol=1e-5, rtol=1e-5)


@kinds
@pytest.mark.parametrize("inverse", [False, True])
def test_zero_parameters_are_the_identity(circular, inverse):
    x = torch.linspace(-BOUND, BOUND, 41, dtype=torch.float64).requires_grad_()
    y, log_slope = spline(x, given(41, circular)[1] * 0, circular=circular, inverse=inverse)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-14)
    # The middle of a bin is where the two forms of the root meet.
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.ones_like(x), rtol=0, atol=1e-12)


def test_the_derivative_is_continuous_at_every_knot():
    _, p = given(1)
    for inverse in (False, True):
        logits = p[0, BINS : 2 * BINS] if inverse else p[0, :BINS]
        sizes = 2 * BOUND * (1e-3 + (1 - BINS * 1e-3) * logits.softmax(0))
        knots = torch.cat([torch.tensor([-BOUND], dtype=torch.float64), -BOUND + sizes.cumsum(0)])
        step = 1e-9
        below, log_below = spline(knots - step, p, inverse=inverse)
        above, log_above = spline(knots + step, p, inverse=inverse)
        torch.testing.assert_close(below, above, rtol=0, atol=1e-6)
        torch.testing.assert_close(log_below, log_above, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_above[[0, -1]], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-5)


def test_both_ends_of_a_circle_have_one_slope():
    _, p = given(20, circular=True)
    ends = torch.tensor([[-BOUND], [BOUND]], dtype=torch.float64)
    low, high = spline(ends.expand(2, 20), p.expand(2, -1, -1), circular=True)[1]
    torch.testing.assert_close(low, high, rtol=0, atol=1e-9)
    assert low.abs().min() > 1e-3


def test_the_tails_are_the_identity():
    x = torch.tensor([-1e6, -3.1, 3.1, 1e6, math.inf], dtype=torch.float64).requires_grad_()
    p = given(5)[1].requires_grad_()
    for inverse in (False, True):
        y, log_slope = spline(x, p, inverse=inverse)
        assert torch.equal(y, x) and not log_slope.any()
        at, of_parameters = torch.autograd.grad(y.sum() + log_slope.sum(), (x, p))
        assert torch.equal(at, torch.ones_like(x)) and not of_parameters.any()
    assert spline(torch.tensor([math.nan], dtype=torch.float64), p[:1])[0].isnan()


@kinds
@pytest.mark.parametrize("inverse", [False, True])
def test_steep_bins_in_single_precision(circular, inverse):
    """Widths and heights far from one another: the discriminant of the textbook form is negative here."""
    x, p = given(20_000, circular, spread=30.0, dtype=torch.float32)
    exact = spline(x.double(), p.double(), circular=circular, inverse=inverse)[0]
    p.requires_grad_()
    y, log_slope = spline(x, p, circular=circular, inverse=inverse)
    assert torch.isfinite(y).all() and torch.isfinite(log_slope).all()
    (of_parameters,) = torch.autograd.grad(y.sum() + log_slope.sum(), p)
    assert torch.isfinite(of_parameters).all()
    # A slope up to 1e5 amplifies the rounding of a knot, so the worst value may be off where most are exact.
    error = (y.double() - exact).abs()
    assert error.median() < 1e-6 and error.max() < 0.05
    assert (y.abs() <= BOUND * (1 + 1e-6)).all()


def test_it_increases():
    _, p = given(1, spread=4.0)
    x = torch.linspace(-4, 4, 10_001, dtype=torch.float64)
    assert (spline(x, p)[0].diff() > 0).all() and (spline(x, p, inverse=True)[0].diff() > 0).all()


@kinds
def test_parameters_broadcast(circular):
    x, p = given(6, circular)
    x = x.reshape(2, 3)
    found = spline(x, p[:3], circular=circular)
    for a, b in zip(found, spline(x, p[:3].expand(2, -1, -1).contiguous(), circular=circular), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_vmap_graph_and_second_derivatives():
    x, p = given(30)
    expected = spline(x, p, inverse=True)
    for found, wanted in zip(vmap(lambda a, b: spline(a, b, inverse=True))(x, p), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    graph = record(lambda a, b: list(spline(a, b, inverse=True)), [x, p])
    for found, wanted in zip(graph(x, p), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    second = hessian(lambda a: spline(a, p[0])[1])(x[0])
    step = 1e-4
    values = [spline(x[0] + k * step, p[0])[1] for k in (-1, 0, 1)]
    torch.testing.assert_close(second, (values[0] - 2 * values[1] + values[2]) / step**2, rtol=1e-4, atol=1e-4)


@kinds
@pytest.mark.parametrize("inverse", [False, True])
def test_a_recorded_gradient_is_that_of_single_operations(circular, inverse):
    """The graph works bin by bin, single operations on all bins at once."""

    def gradients(x, p):
        y, log_slope = spline(x, p, circular=circular, inverse=inverse)
        return [y, log_slope, *torch.autograd.grad((y * y + log_slope).sum(), (x, p))]

    values = [v.requires_grad_() for v in given(50, circular)]
    for found, expected in zip(make_fx(gradients)(*values)(*values), gradients(*values), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("inverse", [False, True])
def test_inductor_makes_one_loop_of_a_spline(inverse):
    x, p = given(64)
    graph = make_fx(lambda a, b: spline(a, b, inverse=inverse))(x, p)
    metrics.reset()
    with pyro.validation_enabled():  # torch.compile turns it off when it is first used
        found = torch.compile(graph)(x, p)
    assert metrics.generated_kernel_count == 1
    for a, b in zip(found, spline(x, p, inverse=inverse), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_wrong_arguments_are_refused():
    x, p = given(4)
    with pytest.raises(ValueError, match=r"parameters must have 14 numbers .* num_bins=5, got the shape \(4, 13\)"):
        spline(x, p[:, 1:])
    with pytest.raises(ValueError, match="parameters must have 15"):
        spline(x, p, circular=True)
    with pytest.raises(ValueError, match="min_size must lie in"):
        spline(x, p, min_size=0.2)
