"""Element-wise splines, on the line and on the circle."""

import math

import pytest
import torch

from pyro_dgm.distributions import transforms as t
from pyro_dgm.ops import rational_quadratic


def perturbed(transform, spread=0.5):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(torch.randn_like(p) * spread)
    return transform.double()


def test_a_spline_is_the_function_at_its_parameters():
    spline = perturbed(t.Spline((2, 3), num_bins=4, bound=2.0))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    y, log_det = spline.forward_and_log_det(x)
    parameters = spline.values.movedim(0, -1).expand(5, 2, 3, 11)
    expected, log_slope = rational_quadratic(x, parameters, 4, bound=2.0)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_det, log_slope.sum((1, 2)), rtol=0, atol=1e-13)
    flat = torch.autograd.functional.jacobian(lambda v: spline(v.reshape(2, 3)).flatten(), x[0].flatten())
    assert torch.equal(flat, torch.diag(flat.diag()))


def test_a_scalar_with_a_context():
    spline = perturbed(t.Spline((), context_dim=2, hidden=(8,)))
    x, context = torch.randn(6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    y, log_det = spline.forward_and_log_det(x, context)
    assert y.shape == log_det.shape == (6,)
    torch.testing.assert_close(spline.inverse_and_log_det(y, context)[0], x, rtol=0, atol=1e-8)
    slope = torch.autograd.functional.jacobian(lambda v: spline.forward_and_log_det(v, context)[0], x).diag()
    torch.testing.assert_close(log_det, slope.log(), rtol=0, atol=1e-9)


def test_many_bins_have_room():
    spline = perturbed(t.Spline(1, num_bins=2000))
    x = torch.linspace(-6, 6, 100, dtype=torch.float64)[:, None]
    torch.testing.assert_close(spline.inv(spline(x)), x, rtol=0, atol=1e-8)


def test_it_learns_a_density():
    """Maximum likelihood on a uniform distribution: the entropy is known."""
    torch.manual_seed(0)
    spline = t.Spline(1, num_bins=16, bound=4.0)
    data = torch.rand(2000, 1) * 4 - 2
    optimizer = torch.optim.Adam(spline.parameters(), lr=0.1)
    for _ in range(150):
        z, log_det = spline.inverse_and_log_det(data)
        loss = (0.5 * (z.square().sum(-1) + math.log(2 * math.pi)) - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.log(4) - 0.02 < loss.item() < math.log(4) + 0.06


def test_on_the_circle():
    spline = perturbed(t.CircularSpline(1, num_bins=5))
    side = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:-1, None]
    with torch.no_grad():
        x, log_det = spline.inverse_and_log_det(side)
        density = (log_det - math.log(2 * math.pi)).exp()
        assert density.mean().item() * 2 * math.pi == pytest.approx(1.0, abs=1e-6)
        # No kink and no jump anywhere on the circle, over the end of the interval too.
        assert (density - density.roll(1)).abs().max() < 5e-3 and density.std() > 0.01
        assert ((x - x.roll(1, 0)).remainder(2 * math.pi) < 0.01).all()
        assert spline.domain.check(x).all()
        # Angles outside stand for the same points of the circle.
        torch.testing.assert_close(spline(side + 2 * math.pi), spline(side), rtol=0, atol=1e-12)


def test_angles_stay_in_the_interval_in_single_precision():
    spline = t.CircularSpline(1)
    edge = torch.nextafter(torch.tensor(math.pi), torch.tensor(0.0))
    x = torch.tensor([[-math.pi], [edge], [0.0]])
    for shift in (0.0, 1e-8, -1e-8, math.pi, -math.pi, 7.0):
        with torch.no_grad():
            spline.values[-1] = shift
        for out in (spline(x), spline.inv(x)):
            assert spline.domain.check(out).all(), (shift, out)


def test_a_family_of_the_users_own():
    class Scale(t.ElementwiseFamily):
        num_parameters = 1

        def forward(self, x, parameters):
            return x * parameters[..., 0].exp(), parameters[..., 0].expand(x.shape)

        def inverse(self, y, parameters):
            return y * (-parameters[..., 0]).exp(), -parameters[..., 0].expand(y.shape)

    x = torch.randn(4, 3, dtype=torch.float64)
    for transform in (t.Elementwise(3, Scale()), t.Coupling(3, Scale()), t.Autoregressive(3, Scale())):
        y, log_det = perturbed(transform).forward_and_log_det(x)
        torch.testing.assert_close(transform.inv(y), x, rtol=0, atol=1e-10)
        assert log_det.shape == (4,) and log_det.abs().min() > 0


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="family must be an ElementwiseFamily such as .*, got None"):
        t.Elementwise(3, None)
    with pytest.raises(ValueError, match="num_bins must be"):
        t.CircularSpline(3, num_bins=1)
    with pytest.raises(ValueError, match="bound must be positive"):
        t.Spline(3, bound=0.0)
