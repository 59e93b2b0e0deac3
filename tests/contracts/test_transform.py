"""One contract over every transform: inverse, log-determinant, context, gradients, copies, graphs and extremes.

A new transform is tested by an entry in ``transform_cases.py``; a test fails if a registered one has none.
"""

import copy

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalTransformedDistribution
from torch.func import jacrev, vmap

from pyro_dgm.capture.static_graph import record
from pyro_dgm.distributions.transforms import TRANSFORMS, Bijection, Compose
from tests.contracts.transform_cases import CASES, PLANE

every = pytest.mark.parametrize("name", list(CASES))
conditional = pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.conditional])
CONTEXT = 2


def make(name, context_dim=0, dtype=torch.float64, spread=None):
    """A transform whose parameters are not at their start."""
    case = CASES[name]
    torch.manual_seed(0)
    transform = case.make(**({"context_dim": context_dim} if context_dim else {})).to(dtype)
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(torch.randn_like(p) * (case.spread if spread is None else spread))
    return transform


def draw(name, *batch, dtype=torch.float64):
    shape = torch.Size((*batch, *CASES[name].event_shape))
    values = CASES[name].draw
    return (torch.randn(shape) if values is None else values(shape)).to(dtype)


def base(event_shape, dtype=torch.float64):
    return dist.Normal(torch.zeros(event_shape, dtype=dtype), 1.0).to_event(len(event_shape))


def test_every_registered_transform_has_a_case():
    assert set(TRANSFORMS) <= {name.split("-")[0] for name in CASES}
    assert all(issubclass(kind, Bijection) for kind in TRANSFORMS.values())


@every
def test_inverse(name):
    t, x = make(name), draw(name, 7)
    y, log_det = t.forward_and_log_det(x)
    back, back_log_det = t.inverse_and_log_det(y)
    assert log_det.shape == back_log_det.shape == (7,) and y.shape == (7, *t.out_shape)
    torch.testing.assert_close(back, x, rtol=0, atol=CASES[name].inverse)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=10 * CASES[name].inverse)
    there, _ = t.forward_and_log_det(back)
    torch.testing.assert_close(there, y, rtol=0, atol=10 * CASES[name].inverse)


@every
def test_log_determinant_is_that_of_the_jacobian(name):
    t, x = make(name), draw(name, 4)
    n = x[0].numel()

    def value(one):
        return t.forward_and_log_det(one[None])[0][0]

    found = t.forward_and_log_det(x)[1]
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(value, x[i]).reshape(n, n)
        torch.testing.assert_close(found[i], torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-7, atol=1e-7)


@every
def test_what_torch_asks_of_a_transform(name):
    t, x = make(name), draw(name, 5)
    y = t(x)
    torch.testing.assert_close(t.log_abs_det_jacobian(x, y), t.forward_and_log_det(x)[1])
    torch.testing.assert_close(t.inv(y), x, rtol=0, atol=CASES[name].inverse)
    assert t.inv.inv is t and t.inv(y) is not x
    assert t.bijective and t.domain.event_dim == len(t.event_shape) and t.codomain.event_dim == len(t.out_shape)
    assert t.domain.check(x).all() and t.codomain.check(y).all()
    assert t.forward_shape(x.shape) == y.shape and t.inverse_shape(y.shape) == x.shape
    if CASES[name].draw is None:
        d = dist.TransformedDistribution(base(t.event_shape), [t])
        assert d.event_shape == t.out_shape and d.batch_shape == ()
        expected = base(t.event_shape).log_prob(t.inv(y)) + t.inverse_and_log_det(y)[1]
        torch.testing.assert_close(d.log_prob(y), expected, rtol=1e-6, atol=1e-6)
        assert d.expand((4,)).rsample((3,)).shape == (3, 4, *t.out_shape)


@every
def test_the_fast_direction_is_exchanged_by_the_inverse(name):
    t = make(name)
    exchanged = {"forward": "inverse", "inverse": "forward", "both": "both"}
    assert t.inv.fast == exchanged[t.fast] and Compose([t]).fast == t.fast
    if CASES[name].draw is None and t.event_shape == t.out_shape:
        assert Compose([t, t.inv]).fast == ("both" if t.fast == "both" else "neither")


@every
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_reach_every_parameter(name, direction):
    t, x = make(name, CONTEXT if CASES[name].conditional else 0), draw(name, 6)
    args = (torch.randn(6, CONTEXT, dtype=torch.float64),) if CASES[name].conditional else ()
    given = x if direction == "forward" else t.forward_and_log_det(x, *args)[0].detach()
    given.requires_grad_()
    value, log_det = getattr(t, f"{direction}_and_log_det")(given, *args)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape)
    ((value * weights).sum() + log_det.sum()).backward()
    assert given.grad is not None and torch.isfinite(given.grad).all()
    for key, p in t.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, key


@every
def test_the_gradient_of_the_inverse_is_that_of_differences(name):
    t, x = make(name), draw(name, 3)
    y = t.forward_and_log_det(x)[0].detach().requires_grad_()
    value, log_det = t.inverse_and_log_det(y)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape)

    def total(at):
        out, log = t.inverse_and_log_det(at)
        return ((out * weights).sum() + log.sum()).detach()

    (found,) = torch.autograd.grad((value * weights).sum() + log_det.sum(), y)
    direction = torch.randn_like(y)
    step = 1e-5
    with torch.no_grad():
        expected = (total(y + step * direction) - total(y - step * direction)) / (2 * step)
    torch.testing.assert_close((found * direction).sum(), expected, rtol=1e-4, atol=1e-4)


@every
def test_log_probabilities_follow_an_optimiser_step(name):
    """A value that was scored before, and one that was drawn, have the density of the new parameters after a step."""
    t = make(name)
    if not list(t.parameters()):
        pytest.skip("it has no parameters")
    x = draw(name, 5)
    y = t(x).detach()
    optimizer = torch.optim.SGD(t.parameters(), lr=0.01)
    # Weights, since reflections and permutations leave the sum of squares alone.
    loss = t.forward_and_log_det(x)[0].flatten()
    (loss * torch.linspace(0.5, 1.5, len(loss), dtype=torch.float64)).sum().backward()
    before = t(x).detach()
    optimizer.step()
    fresh = copy.deepcopy(t)
    torch.testing.assert_close(t(x), fresh(x.clone()), rtol=0, atol=0)
    torch.testing.assert_close(t.inv(y), fresh.inv(y.clone()), rtol=0, atol=0)
    torch.testing.assert_close(t.log_abs_det_jacobian(x, y), fresh.log_abs_det_jacobian(x.clone(), y), rtol=0, atol=0)
    assert not torch.equal(t(x), before)


@conditional
def test_context_broadcasts_over_the_batch(name):
    t, x = make(name, CONTEXT), draw(name, 4, 5)
    context = torch.randn(5, CONTEXT, dtype=torch.float64)
    y, log_det = t.forward_and_log_det(x, context)
    assert y.shape == (4, 5, *t.out_shape) and log_det.shape == (4, 5)
    for i in (0, 4):
        one, one_log_det = t.forward_and_log_det(x[2, i], context[i])
        torch.testing.assert_close(one, y[2, i])
        torch.testing.assert_close(one_log_det, log_det[2, i])
    assert t.forward_and_log_det(x[0, 0], context)[0].shape == (5, *t.out_shape)
    fixed = t.condition(context)
    torch.testing.assert_close(fixed(x), y)
    torch.testing.assert_close(fixed.inv(y), x, rtol=0, atol=CASES[name].inverse)
    assert {id(p) for p in fixed.parameters()} == {id(p) for p in t.parameters()}
    assert not torch.allclose(t.forward_and_log_det(x, context + 1)[0], y)
    if CASES[name].draw is None:
        d = ConditionalTransformedDistribution(base(t.event_shape), [t]).condition(context)
        assert d.batch_shape == (5,) and d.log_prob(y).shape == (4, 5)
        torch.testing.assert_close(d.log_prob(y), base(t.event_shape).log_prob(x) - log_det, rtol=1e-6, atol=1e-6)


@every
def test_bad_shapes_are_refused(name):
    t, x = make(name), draw(name, 4)
    kind = type(t).__name__
    with pytest.raises(ValueError, match=f"{kind}: x must end in the event shape"):
        t(torch.zeros(4, *[n + 1 for n in t.event_shape], dtype=torch.float64))
    with pytest.raises(ValueError, match=f"{kind}: y must end in the event shape"):
        t.inverse_and_log_det(torch.zeros(4, *[n + 1 for n in t.out_shape], dtype=torch.float64))
    with pytest.raises(ValueError, match="takes no context"):
        t.forward_and_log_det(x, torch.zeros(4, CONTEXT, dtype=torch.float64))
    if CASES[name].conditional:
        t = make(name, CONTEXT)
        with pytest.raises(ValueError, match="context must have shape"):
            t.forward_and_log_det(x)
        with pytest.raises(ValueError, match="context must have shape"):
            t.forward_and_log_det(x, torch.zeros(4, CONTEXT + 1, dtype=torch.float64))
        with pytest.raises(ValueError, match="whose batch broadcasts"):
            t.forward_and_log_det(x, torch.zeros(3, CONTEXT, dtype=torch.float64))


@every
def test_extremes_in_single_precision_are_finite(name):
    case = CASES[name]
    if case.draw is not None:
        pytest.skip("it is not on the whole real space")
    t = make(name, dtype=torch.float32, spread=0.1)
    x = torch.tensor([0.0, 1e-6, 1.0, 30.0, case.extremes])
    x = torch.cat([x, -x])[:, None].expand(-1, torch.Size(case.event_shape).numel()).reshape(-1, *case.event_shape)
    x = x.clone().requires_grad_()
    y, log_det = t.forward_and_log_det(x)
    assert torch.isfinite(y).all() and torch.isfinite(log_det).all()
    (y.sum() + log_det.sum()).backward()
    assert torch.isfinite(x.grad).all() and all(
        torch.isfinite(p.grad).all() for p in t.parameters() if p.grad is not None
    )
    back, back_log_det = t.inverse_and_log_det(x.detach().reshape(-1, *t.out_shape))
    assert torch.isfinite(back).all() and torch.isfinite(back_log_det).all()


@every
def test_copies_and_saved_weights(name):
    t, x = make(name), draw(name, 3)
    t.inv  # noqa: B018  (the view must not be in the copy's way)
    twin = copy.deepcopy(t)
    torch.testing.assert_close(twin(x), t(x), rtol=0, atol=0)
    assert twin.inv.inv is twin
    assert not {id(p) for p in t.parameters()} & {id(p) for p in twin.parameters()}
    other = make(name, spread=0.05)
    other.load_state_dict(t.state_dict())
    torch.testing.assert_close(other(x), t(x), rtol=0, atol=0)
    assert len(list(t.modules())) == len(list(twin.modules()))


@every
def test_vmap(name):
    t, x = make(name), draw(name, 3, 4)
    y, log_det = t.forward_and_log_det(x)
    values, log_dets = vmap(t.forward_and_log_det)(x)
    torch.testing.assert_close(values, y)
    torch.testing.assert_close(log_dets, log_det)
    back, _ = vmap(t.inverse_and_log_det)(y)
    torch.testing.assert_close(back, x, rtol=0, atol=CASES[name].inverse)
    row = vmap(jacrev(lambda one: t.forward_and_log_det(one)[1]))(x[0])
    assert row.shape == x[0].shape and torch.isfinite(row).all()


# A numerical inverse is recorded step by step: seconds each.
DIRECTIONS = [
    pytest.param(name, direction, marks=pytest.mark.slow if direction == "inverse" and case.inverse > 1e-8 else ())
    for name, case in CASES.items()
    for direction in ("forward", "inverse")
]


@pytest.mark.parametrize("name, direction", DIRECTIONS)
def test_a_recorded_graph_gives_the_same(name, direction):
    t, x = make(name), draw(name, 4)
    given = x if direction == "forward" else t.forward_and_log_det(x)[0].detach()
    method = getattr(t, f"{direction}_and_log_det")
    graph = record(lambda v: list(method(v)), [given])
    other = given.flip(0).clone()
    for found, expected in zip(graph(other), method(other), strict=True):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        for p in t.parameters():
            p.mul_(0.9)
    for found, expected in zip(graph(other), method(other), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", list(PLANE))
def test_the_density_on_the_plane_integrates_to_one(name):
    torch.manual_seed(0)
    t = PLANE[name]().double()
    with torch.no_grad():
        for p in t.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    side = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        x, log_det = t.inverse_and_log_det(grid)
        density = (base((2,)).log_prob(x) + log_det).exp()
    # The rectangle rule is exact to the smoothness of the density; a spline has kinks in its derivative.
    assert density.sum().item() * (24 / 800) ** 2 == pytest.approx(1.0, abs=2e-3)


@every
def test_composed_with_itself(name):
    t, x = make(name), draw(name, 4)
    if t.event_shape != t.out_shape or CASES[name].draw is not None:
        pytest.skip("its output is not its input's space")
    y, first = t.forward_and_log_det(x)
    y, second = t.forward_and_log_det(y)
    found, log_det = Compose([t, t]).forward_and_log_det(x)
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(log_det, first + second)
