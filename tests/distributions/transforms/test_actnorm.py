"""Scales and shifts that start from data: what ``initialize`` sets, where it stops, and that nothing else does."""

import copy

import pytest
import torch

from pyro_dgm.distributions.transforms import (
    ActNorm,
    Compose,
    ElementwiseAffine,
    InvertibleConv1x1,
    Permutation,
    Spline,
    SplineCoupling,
)

D = torch.float64


def images(n=200):
    torch.manual_seed(1)
    scale = torch.tensor([0.5, 3.0], dtype=D)[:, None, None]
    return 4 + scale * torch.randn(n, 2, 3, 3, dtype=D)


def statistics(x):
    values = x.transpose(0, 1).flatten(1)
    return values.std(1), values.mean(1)


def test_each_channel_is_standardised():
    t, y = ActNorm((2, 3, 3)).double(), images()
    t.initialize(y)
    x, log_det = t.inverse_and_log_det(y)
    std, mean = statistics(y)
    torch.testing.assert_close(x, (y - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(log_det, (-9 * std.log().sum()).expand(200))
    torch.testing.assert_close(t.bias.detach(), torch.cat([mean, std.log()]))


def test_each_feature_of_a_vector_is_standardised():
    t, y = ActNorm(3).double(), torch.randn(50, 3, dtype=D) * torch.tensor([1.0, 2.0, 0.0]) + 1
    t.initialize(y)
    x = t.inv(y)
    torch.testing.assert_close(x.mean(0), torch.zeros(3, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.std(0), torch.tensor([1.0, 1.0, 0.0], dtype=D))  # a constant has no scale


def test_the_inverse_starts_from_its_own_output():
    t, y = ActNorm((2, 3, 3)).double(), images()
    t.inv.initialize(y)
    std, mean = statistics(t(y))
    torch.testing.assert_close(mean, torch.zeros(2, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(std, torch.ones(2, dtype=D))


def test_every_part_of_a_flow_sees_standardised_values():
    torch.manual_seed(0)
    first, second = ActNorm((2, 3, 3)), ActNorm((2, 3, 3))
    flow = Compose([first, InvertibleConv1x1((2, 3, 3)).inv, Compose([second])]).double()
    # Values that are correlated over channels, so that a rotation changes their scales.
    y = images()
    y = torch.cat([y[:, :1] + y[:, 1:], y[:, 1:]], 1)
    flow.initialize(y)
    for parts in (flow.parts[2:], flow.parts):  # behind the second one, and behind both
        std, mean = statistics(Compose(parts).inv(y))
        torch.testing.assert_close(mean, torch.zeros(2, dtype=D), rtol=0, atol=1e-10)
        torch.testing.assert_close(std, torch.ones(2, dtype=D))
    assert first.bias.abs().max() > 0.01


def test_data_are_looked_at_once():
    """Later calls change nothing, and a copy by its saved weights needs no start of its own."""
    t, y = ActNorm((2, 3, 3)).double(), images()
    t.initialize(y)
    before = copy.deepcopy(t.state_dict())
    t.train()
    t.inverse_and_log_det(y * 7)
    assert all(torch.equal(before[key], value) for key, value in t.state_dict().items())
    other = ActNorm((2, 3, 3)).double()
    other.load_state_dict(before)
    torch.testing.assert_close(other.inv(y), t.inv(y), rtol=0, atol=0)


def test_with_a_context():
    t, y = ActNorm((2, 3, 3), context_dim=2).double(), images()
    with torch.no_grad():
        t.weight.normal_()
    t.initialize(y, torch.randn(200, 2, dtype=D))
    std, mean = statistics(t.condition(torch.randn(2, dtype=D)).inv(y))
    torch.testing.assert_close(mean, torch.zeros(2, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(std, torch.ones(2, dtype=D))


def test_it_goes_no_further_than_the_last_part_that_starts_from_data():
    y = torch.randn(50, 3, dtype=D) * 2 + 1
    coupling = SplineCoupling(3, context_dim=2, hidden=(4,))
    flow = Compose([coupling, ElementwiseAffine(3)]).double()
    assert flow.starts_from_data and not coupling.starts_from_data
    flow.initialize(y)  # needs no context, although the coupling takes one
    torch.testing.assert_close(flow.parts[1].inv(y).std(0), torch.ones(3, dtype=D))
    deeper = Compose([ActNorm(3), coupling, Permutation(3)]).double()
    with pytest.raises(ValueError, match="initialize needs the context: SplineCoupling"):
        deeper.initialize(y)
    deeper.initialize(y, torch.zeros(50, 2, dtype=D))
    assert deeper.parts[0].bias.abs().max() > 0.1
    Spline(3).double().initialize(y)  # nothing in it starts from data


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="at least two values for each scale"):
        ActNorm(3).initialize(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="ActNorm: y must end in the event shape"):
        ActNorm(3).initialize(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"parameter_shape must have the sizes of event_shape \(2, 3\) or ones"):
        ElementwiseAffine((2, 3), parameter_shape=(2, 2))
