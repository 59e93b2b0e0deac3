"""A flow as a distribution, at sites and in base space, against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import biject_to

from pyro_dgm.distributions import FlowDistribution, FlowReparam
from pyro_dgm.distributions.transforms import (
    AffineAutoregressive,
    Compose,
    ElementwiseAffine,
    SplineCoupling,
    Wrapped,
)


def affine(shift=(1.0, -2.0), scale=(0.5, 3.0), context_dim=0):
    t = ElementwiseAffine(2, context_dim).double()
    with torch.no_grad():
        t.bias.copy_(torch.tensor([*shift, *torch.tensor(scale, dtype=torch.float64).log().tolist()]))
        if context_dim:
            t.weight.copy_(torch.linspace(-1, 1, t.weight.numel()).reshape(t.weight.shape))
    return t


def spline(context_dim=0):
    torch.manual_seed(0)
    t = SplineCoupling(3, num_bins=4, hidden=(8,), context_dim=context_dim).double()
    with torch.no_grad():
        for p in t.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return t


def test_affine_flow_is_a_normal():
    flow = FlowDistribution(affine())
    exact = dist.Normal(torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()).to_event(1)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x), exact.log_prob(x))
    torch.manual_seed(0)
    draws = flow.sample((20_000,))
    assert ((draws.mean(0) - exact.mean) / (exact.stddev / 20_000**0.5)).abs().max() < 4
    torch.testing.assert_close(draws.std(0), exact.stddev, rtol=0.03, atol=0)


def test_shapes_batches_and_support():
    context = torch.randn(4, 2, dtype=torch.float64)
    flow = FlowDistribution(spline(2), context=context)
    assert (flow.batch_shape, flow.event_shape) == ((4,), (3,))
    big = flow.expand((6, 4))
    assert isinstance(big, FlowDistribution) and big.rsample((2,)).shape == (2, 6, 4, 3)
    assert big.log_prob(torch.zeros(3, dtype=torch.float64)).shape == (6, 4)
    for i in range(4):
        one = FlowDistribution(flow.transform, context=context[i])
        x = flow.sample((5,))
        torch.testing.assert_close(one.log_prob(x[:, i]), flow.log_prob(x)[:, i])
    positive = FlowDistribution(Compose([affine(), Wrapped(torch.distributions.ExpTransform(), (2,))]))
    assert positive.support.check(positive.sample((10,))).all()
    assert not positive.support.check(-torch.ones(2))
    u = torch.randn(2, dtype=torch.float64)
    assert positive.support.check(biject_to(positive.support)(u))
    with pytest.raises(ValueError, match="support"):
        FlowDistribution(positive.transform, validate_args=True).log_prob(-torch.ones(2, dtype=torch.float64))


def test_another_base_and_the_batch_of_it():
    loc = torch.zeros(7, 2, dtype=torch.float64)
    flow = FlowDistribution(affine(), dist.StudentT(3.0, loc, 1.0))
    assert (flow.batch_shape, flow.event_shape) == ((7,), (2,))
    x = torch.randn(7, 2, dtype=torch.float64)
    z = (x - torch.tensor([1.0, -2.0])) / torch.tensor([0.5, 3.0])
    exact = dist.StudentT(3.0).log_prob(z).sum(-1) - torch.tensor([0.5, 3.0]).double().log().sum()
    torch.testing.assert_close(flow.log_prob(x), exact)


@pytest.mark.parametrize("remember", [False, True])
def test_a_draw_with_its_density(remember):
    flow = FlowDistribution(spline(), remember=remember)
    value, log_prob = flow.rsample_with_log_prob((5,))
    torch.testing.assert_close(flow.log_prob(value), log_prob)
    value = flow.rsample((5,))
    torch.testing.assert_close(flow.log_prob(value), FlowDistribution(flow.transform).log_prob(value))
    gradients = [
        torch.autograd.grad(flow.log_prob(v).sum(), list(flow.transform.parameters()), retain_graph=True)
        for v in (value, value.clone())
    ]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_what_is_remembered_does_not_outlive_a_step():
    flow = FlowDistribution(affine(), remember=True)
    value = flow.rsample()
    before = flow.log_prob(value)
    optimizer = torch.optim.SGD(flow.transform.parameters(), lr=0.1)
    value.sum().backward()
    optimizer.step()
    after = flow.log_prob(value)
    torch.testing.assert_close(after, FlowDistribution(flow.transform).log_prob(value))
    assert (after - before).abs() > 1e-3
    with torch.no_grad():
        value = flow.rsample()
    assert flow.log_prob(value).requires_grad  # the score of a draw without gradients
    slow = FlowDistribution(AffineAutoregressive(3, hidden=(4,)), remember=True)
    slow.transform._backward = None  # an inverse would raise
    assert slow.log_prob(slow.rsample()).shape == ()
    with pytest.raises(TypeError):
        slow.log_prob(slow.rsample().clone())


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="transform must be a Bijection, got ExpTransform"):
        FlowDistribution(torch.distributions.ExpTransform())
    with pytest.raises(TypeError, match="base must be a distribution, got int"):
        FlowDistribution(affine(), 3)
    with pytest.raises(ValueError, match=r"base must have the event shape \(2,\).*got batch shape \(3,\)"):
        FlowDistribution(affine(), dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match=r"context must have shape batch \+ \(3,\); pass it"):
        FlowDistribution(affine(context_dim=3))
    with pytest.raises(ValueError, match=r"context must have shape .* got \(5, 2\)"):
        FlowDistribution(affine(context_dim=3), context=torch.zeros(5, 2))
    with pytest.raises(ValueError, match="takes no context"):
        FlowDistribution(affine(), context=torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"broadcasts with the batch \(4,\) of base"):
        FlowDistribution(
            affine(context_dim=3), dist.Normal(torch.zeros(4, 2).double(), 1.0), torch.zeros(5, 3, dtype=torch.float64)
        )


def site(observed=None, nested=False):
    flow = FlowDistribution(spline(2), context=torch.ones(4, 2, dtype=torch.float64))
    if nested:
        return pyro.sample("y", flow.to_event(1), obs=observed)
    with pyro.plate("rows", 4):
        return pyro.sample("y", flow, obs=observed)


@pytest.mark.parametrize("nested", [False, True])
def test_reparameterised_site(nested):
    moved = poutine.reparam(site, {"y": FlowReparam()})
    torch.manual_seed(0)
    trace = poutine.trace(moved).get_trace(nested=nested)
    assert [n for n in trace.stochastic_nodes if n != "rows"] == ["y_base"]
    assert trace.nodes["y"]["is_observed"]
    y, noise = trace.nodes["y"]["value"], trace.nodes["y_base"]["value"]
    flow = FlowDistribution(spline(2), context=torch.ones(4, 2, dtype=torch.float64))
    torch.testing.assert_close(flow.transform.forward_and_log_det(noise, flow.context)[0], y)
    torch.testing.assert_close(trace.log_prob_sum(), flow.base.log_prob(noise).sum())
    # Of data the density is what it was.
    plain, seen = (poutine.trace(fn).get_trace(y, nested=nested) for fn in (site, moved))
    assert not [n for n in seen.stochastic_nodes if n != "rows"]
    torch.testing.assert_close(seen.log_prob_sum(), plain.log_prob_sum())


def test_reparameterised_site_of_another_distribution():
    moved = poutine.reparam(lambda: pyro.sample("y", dist.Normal(0.0, 1.0)), {"y": FlowReparam()})
    with pytest.raises(TypeError, match="site 'y' must have a FlowDistribution, got Normal"):
        moved()
