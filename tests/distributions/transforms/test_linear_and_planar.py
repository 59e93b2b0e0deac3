"""Linear, planar, radial and Sylvester transforms against their equations, at the limits of what is invertible."""

import pytest
import torch

from pyro_dgm.distributions.transforms import Householder, LULinear, Planar, Radial, Sylvester

D = torch.float64


def moved(transform, spread=1.0):
    torch.manual_seed(2)
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(torch.randn_like(p) * spread)
    return transform.to(D)


def test_reflections_are_an_orthogonal_matrix():
    t = moved(Householder(4, num_reflections=3))
    matrix = t(torch.eye(4, dtype=D)).mT
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(4, dtype=D))
    assert torch.linalg.det(matrix).item() == pytest.approx(-1.0)  # three reflections


def test_the_matrix_is_the_product_of_its_factors():
    t = moved(LULinear(3), 0.5)
    shift, log_scale = t.parameters_of.bias.chunk(2)
    lower = t.matrix.lower.tril(-1) + torch.eye(3, dtype=D)
    upper = t.matrix.upper.triu(1) + torch.eye(3, dtype=D)
    product = lower @ log_scale.exp().diag() @ upper
    x = torch.randn(5, 3, dtype=D)
    torch.testing.assert_close(t(x), x @ product.mT + shift)
    torch.testing.assert_close(t.forward_and_log_det(x)[1][0], torch.linalg.slogdet(product).logabsdet)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_planar_is_its_equation_and_invertible_for_any_parameters(scale):
    t = moved(Planar(3), scale)
    u, w, b = t.parameters_of.bias.split((3, 3, 1))
    inner = w @ u
    moved_u = u + (torch.nn.functional.softplus(inner) - 1 - inner) * w / (w @ w)
    assert (w @ moved_u).item() > -1 - 1e-9
    x = torch.randn(50, 3, dtype=D) * 3
    y = t(x)
    torch.testing.assert_close(y, x + moved_u * (x @ w + b).tanh()[:, None])
    if scale == 1.0:
        torch.testing.assert_close(t.inv(y), x, rtol=0, atol=1e-7)


def test_radial_at_its_centre_and_far_away():
    t = moved(Radial(3))
    centre = t.parameters_of.bias[:3].detach()
    x = torch.stack([centre, centre + 1e-9, centre + 1e6]).requires_grad_()
    y, log_det = t.forward_and_log_det(x)
    torch.testing.assert_close(y[0], centre)
    (y.sum() + log_det.sum()).backward()
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(t.inv(y), x, rtol=1e-9, atol=1e-9)


def test_sylvester_is_its_equation():
    t = moved(Sylvester(4, num_units=2), 0.5)
    vectors, first, second, bias = t._parts(None)
    q = torch.eye(4, dtype=D)
    for v in reversed(vectors):
        q = (torch.eye(4, dtype=D) - 2 * torch.outer(v, v) / (v @ v)) @ q
    q = q.mT[:, :2]
    torch.testing.assert_close(q.mT @ q, torch.eye(2, dtype=D))
    x = torch.randn(6, 4, dtype=D)
    hidden = (x @ q @ second.mT + bias).tanh()
    torch.testing.assert_close(t(x), x + hidden @ first.mT @ q.mT)


def test_one_unit_of_sylvester_is_planar():
    """The same map: w = r' q, u = r q, so that w'u = r r' |q|^2."""
    t = moved(Sylvester(3, num_units=1), 0.3)
    vectors, first, second, bias = t._parts(None)
    x = torch.randn(7, 3, dtype=D)
    y, log_det = t.forward_and_log_det(x)
    q = t._lift(torch.ones(1, dtype=D), vectors)
    fold = (second[0, 0] * (x @ q) + bias).tanh()
    torch.testing.assert_close(y, x + first[0, 0] * q * fold[:, None])
    torch.testing.assert_close(log_det, (1 + first[0, 0] * second[0, 0] * (1 - fold**2)).log())


def test_bad_sizes():
    with pytest.raises(ValueError, match="num_units must be at most dim = 3, got 4"):
        Sylvester(3, num_units=4)
    for make in (Householder, LULinear, Planar, Radial, Sylvester):
        with pytest.raises(ValueError, match="dim must be an integer of at least 1, got 0"):
            make(0)
    with pytest.raises(ValueError, match="num_reflections"):
        Householder(3, num_reflections=0)
