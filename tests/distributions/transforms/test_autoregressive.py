"""Autoregressive flows: a Gaussian in closed form, the order of dependence, gradients of the sequential inverse."""

import pytest
import torch
from pyro import distributions as dist
from torch.func import functional_call, jacrev

from pyro_dgm.distributions import transforms as t


def perturbed(transform, spread=0.5):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(torch.randn_like(p) * spread)
    return transform.double()


def test_an_affine_flow_without_hidden_layers_is_a_gaussian():
    flow = t.AffineAutoregressive(2, hidden=())
    shift, scale, weight = torch.tensor([0.3, -1.0]), torch.tensor([0.4, -0.2]), 0.7
    with torch.no_grad():
        layer = flow.network.layers[0]
        layer.bias.copy_(torch.cat([shift, scale]))
        layer.weight.zero_()
        layer.weight[1, 0] = weight  # the shift of the second element depends on the first one
    flow = flow.double()
    s = (5 * torch.tanh(scale / 5)).exp().double()
    factor = torch.tensor([[s[0], 0], [weight, s[1]]], dtype=torch.float64)
    normal = dist.MultivariateNormal(shift.double(), scale_tril=factor)
    x = torch.randn(6, 2, dtype=torch.float64)
    base = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    torch.testing.assert_close(
        dist.TransformedDistribution(base, [flow]).log_prob(x), normal.log_prob(x), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("order", [None, "reverse", (2, 0, 3, 1)])
@pytest.mark.parametrize("kind", [t.AffineAutoregressive, t.SplineAutoregressive])
def test_the_jacobian_is_triangular_in_the_order(kind, order):
    flow = perturbed(kind(4, hidden=(32, 32), order=order))
    jacobian = jacrev(flow)(torch.randn(4, dtype=torch.float64))
    index = torch.tensor(flow.network.order)
    assert flow.network.order == {None: (0, 1, 2, 3), "reverse": (3, 2, 1, 0)}.get(order, order)
    in_order = jacobian[index][:, index]
    assert torch.equal(in_order, in_order.tril()) and (in_order.tril() != 0).sum() == 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: t.AffineAutoregressive(4, hidden=(8,), order=(2, 0, 3, 1)),
        lambda: t.SplineAutoregressive(4, num_bins=4, hidden=(8, 8), residual=True),
        lambda: t.Autoregressive(4, t.AdditiveFamily(), hidden=()),
    ],
)
def test_the_inverse_has_the_gradient_of_the_implicit_function(make):
    """x(y, w) solves f(x, w) = y: dx/dy = J^-1 and dx/dw = -J^-1 df/dw."""
    flow = perturbed(make())
    weights = dict(flow.named_parameters())
    y = torch.randn(4, dtype=torch.float64)
    x = flow.inv(y).detach()
    inverse = torch.linalg.inv(jacrev(flow)(x))
    torch.testing.assert_close(jacrev(flow.inv)(y), inverse, rtol=1e-8, atol=1e-8)
    of_weights = jacrev(lambda w: functional_call(flow, w, (x,)))(weights)
    # The inverse shares the weights, under names of its own.
    found = jacrev(lambda w: functional_call(flow.inv, {f"transform.{k}": v for k, v in w.items()}, (y,)))(weights)
    for key in weights:
        expected = -torch.einsum("ij,j...->i...", inverse, of_weights[key])
        torch.testing.assert_close(found[key], expected, rtol=1e-7, atol=1e-7)


def test_elements_that_are_not_known_yet_cannot_overflow():
    """With weights this large, a network that saw guesses would be infinite, and zero times infinity is NaN."""
    flow = perturbed(t.AffineAutoregressive(6, hidden=(16,)), spread=0.0)
    with torch.no_grad():
        flow.network.layers[-1].weight.normal_().mul_(50)
    flow = flow.float()
    y = (torch.randn(10, 6) * 1e6).requires_grad_()
    x, log_det = flow.inverse_and_log_det(y)
    assert torch.isfinite(log_det).all() and torch.isfinite(x[:, :3]).all()
    assert not x.isnan().any()


def test_a_new_flow_is_the_identity():
    x = torch.rand(7, 4, dtype=torch.float64) * 2 - 1
    for flow in (t.AffineAutoregressive(4), t.SplineAutoregressive(4), t.Autoregressive(4, t.CircularSplineFamily())):
        y, log_det = flow.double().forward_and_log_det(x)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
        torch.testing.assert_close(log_det, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-13)


def test_a_flow_of_one_element_depends_on_its_context():
    flow = perturbed(t.SplineAutoregressive(1, context_dim=2, hidden=(8,)))
    x, context = torch.randn(5, 1, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    y, _ = flow.forward_and_log_det(x, context)
    torch.testing.assert_close(flow.inverse_and_log_det(y, context)[0], x, rtol=0, atol=1e-8)
    assert not torch.allclose(y, flow.forward_and_log_det(x, context + 1)[0])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="order must be 'reverse', a permutation or None, got 'random'"):
        t.AffineAutoregressive(3, order="random")
    with pytest.raises(ValueError, match="order must hold each of 0, ..., 2 once"):
        t.AffineAutoregressive(3, order=(0, 1, 1))
    with pytest.raises(ValueError, match="dim must be"):
        t.SplineAutoregressive(0)
    with pytest.raises(ValueError, match="hidden must hold equal widths"):
        t.SplineAutoregressive(3, hidden=(8, 16), residual=True)
    with pytest.raises(TypeError, match="family must be an ElementwiseFamily such as .*, got <class"):
        t.Autoregressive(3, t.AffineFamily)
