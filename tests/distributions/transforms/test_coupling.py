"""Coupling layers: closed forms, masks, networks of the user, densities on a torus, errors."""

import math

import pytest
import torch
from torch import nn

from pyro_dgm.distributions import transforms as t
from pyro_dgm.nn import MLP

KINDS = [t.AdditiveCoupling, t.AffineCoupling, t.SplineCoupling, t.CircularSplineCoupling]


def constant(parameters):
    """A network that gives the same parameters for every input, ``(changed, num_parameters)``."""

    class Constant(nn.Module):
        def forward(self, kept, *context):
            return parameters.expand(*kept.shape[:-1], *parameters.shape)

    return Constant()


def test_affine_and_additive_couplings_are_their_equations():
    x = torch.randn(5, 3, dtype=torch.float64)
    parameters = torch.tensor([[0.5, 0.2], [-1.0, -0.4]], dtype=torch.float64)
    y, log_det = t.AffineCoupling(3, network=constant(parameters), max_log_scale=2.0).forward_and_log_det(x)
    shift, log_scale = parameters[:, 0], 2 * torch.tanh(parameters[:, 1] / 2)
    torch.testing.assert_close(y, torch.cat([x[:, :1], x[:, 1:] * log_scale.exp() + shift], -1), rtol=0, atol=1e-14)
    torch.testing.assert_close(log_det, log_scale.sum().expand(5), rtol=0, atol=1e-14)
    y, log_det = t.AdditiveCoupling(3, network=constant(parameters[:, :1])).forward_and_log_det(x)
    torch.testing.assert_close(y, torch.cat([x[:, :1], x[:, 1:] + shift], -1), rtol=0, atol=1e-14)
    assert not log_det.any()


def test_the_log_scale_is_bounded():
    wild = torch.tensor([[0.0, 1e30], [0.0, -1e30]])
    y, log_det = t.AffineCoupling(3, network=constant(wild), max_log_scale=3.0).forward_and_log_det(torch.ones(1, 3))
    torch.testing.assert_close(y, torch.tensor([[1.0, math.exp(3), math.exp(-3)]]))
    assert log_det.item() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_layer_is_the_identity(kind):
    x = torch.rand(7, 4, dtype=torch.float64) * 2 - 1
    for options in ({}, {"flip": True}, {"mask": "alternate"}, {"context_dim": 2}):
        layer = kind(4, **options).double()
        context = (torch.ones(2, dtype=torch.float64),) if "context_dim" in options else ()
        y, log_det = layer.forward_and_log_det(x, *context)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
        torch.testing.assert_close(log_det, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1]),
        ({"flip": True}, [2, 3, 4]),
        ({"mask": "alternate"}, [0, 2, 4]),
        ({"mask": "alternate", "flip": True}, [1, 3]),
        ({"mask": [False, True, True, False, True]}, [1, 2, 4]),
        ({"mask": [False, False, False, True, True]}, [3, 4]),
    ],
)
def test_the_elements_that_stay(options, kept):
    torch.manual_seed(0)
    layer = t.AffineCoupling(5, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x = torch.randn(6, 5)
    y = layer(x)
    same = [i for i in range(5) if torch.equal(x[:, i], y[:, i])]
    assert same == kept == layer.kept
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v), x[0])
    for i in layer.changed:
        assert {j for j in range(5) if jacobian[i, j] != 0} == {i, *kept}


def test_a_network_of_the_user_trains_through_the_layer():
    network = MLP((1,), (2, 2), hidden=(8,))
    layer = t.AffineCoupling(3, network=network)
    assert network.layers[-1].weight.any(), "its weights are left alone"
    layer.forward_and_log_det(torch.randn(4, 3))[1].sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_density_on_a_torus_is_continuous_and_integrates_to_one():
    torch.manual_seed(0)
    flow = t.Compose([t.CircularSplineCoupling(2, num_bins=4, hidden=(8,), flip=f) for f in (False, True)]).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    side = torch.linspace(-math.pi, math.pi, 401, dtype=torch.float64)[:-1]
    points = torch.cartesian_prod(side, side)
    with torch.no_grad():
        x, log_det = flow.inverse_and_log_det(points)
        assert flow.domain.check(x).all() and flow.codomain.check(flow(x)).all()
        density = (log_det - 2 * math.log(2 * math.pi)).exp()
        # The rectangle rule on a periodic function that is continuous and differentiable but at the knots.
        assert density.sum().item() * (2 * math.pi / 400) ** 2 == pytest.approx(1.0, abs=1e-5)
        near = torch.tensor([[math.pi - 1e-9, 0.3], [-math.pi, 0.3], [0.3, math.pi - 1e-9], [0.3, -math.pi]]).double()
        at = flow.inverse_and_log_det(near)[1]
        torch.testing.assert_close(at[[0, 2]], at[[1, 3]], rtol=0, atol=1e-6)
        angles = flow(near)
        gap = (angles[[0, 2]] - angles[[1, 3]] + math.pi) % (2 * math.pi) - math.pi
        assert gap.abs().max() < 1e-6
        assert density.std() > 0.01


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="dim must be an integer of at least 2"):
        t.SplineCoupling(1)
    with pytest.raises(TypeError, match="dim must be"):
        t.SplineCoupling(2.0)
    with pytest.raises(ValueError, match="mask must be 'half', 'alternate' or a sequence of booleans, got 'third'"):
        t.AffineCoupling(3, mask="third")
    for mask in ([True, False], [True, True, True]):
        with pytest.raises(ValueError, match="mask must hold 3 booleans, true and false ones"):
            t.AffineCoupling(3, mask=mask)
    with pytest.raises(ValueError, match="max_log_scale must be positive"):
        t.AffineCoupling(3, max_log_scale=0)
    with pytest.raises(ValueError, match="num_bins must be"):
        t.SplineCoupling(3, num_bins=1)
    with pytest.raises(ValueError, match="bound must be positive"):
        t.SplineCoupling(3, bound=-1.0)
    with pytest.raises(TypeError, match="family must be an ElementwiseFamily such as .*, got 'affine'"):
        t.Coupling(3, "affine")
    with pytest.raises(ValueError, match=r"network must give the shape batch \+ \(2, 2\), got \(5, 4\)"):
        t.AffineCoupling(3, network=nn.Linear(1, 4))(torch.zeros(5, 3))
