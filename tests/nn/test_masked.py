"""Masked networks: which output sees which input, context and order."""

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from pyro_dgm.nn import MaskedLinear, MaskedMLP

OPTIONS = [
    {},
    {"hidden": ()},
    {"hidden": (3, 40, 7)},
    {"residual": True, "hidden": (16, 16, 16)},
    {"order": (2, 0, 3, 1)},
    {"activation": nn.Tanh, "num_features": 2},
]


def make(context_dim=0, dim=4, **options):
    torch.manual_seed(0)
    net = MaskedMLP(dim, 3, context_dim=context_dim, **{"activation": nn.Tanh, **options}).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p))
    return net


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("context_dim", [0, 2])
def test_each_output_sees_just_the_inputs_before_it(options, context_dim):
    net = make(context_dim, **options)
    features = options.get("num_features", 1)
    x, context = torch.randn(4 * features).double(), torch.randn(2).double() if context_dim else None
    seen = jacrev(lambda v: net(v, context))(x).abs().sum(1).reshape(4, 4, features) > 0
    place = {i: m for m, i in enumerate(net.order)}
    # A narrow first layer cannot see everything: three units have degrees 1, 2 and 3 at most.
    for i in range(4):
        for j in range(4):
            assert seen[i, j].all() == seen[i, j].any()
            if place[j] >= place[i]:
                assert not seen[i, j].any()
            elif options.get("hidden", (64, 64)) != (3, 40, 7):
                assert seen[i, j].all()
    if context_dim:
        by_context = jacrev(lambda c: net(x, c))(context).abs().sum(1)
        assert (by_context > 0).all()
        first = net.order[0]
        moved = net(x, context + 1)[first] - 2 * net(x, context)[first] + net(x, context - 1)[first]
        assert options.get("hidden") == () or moved.abs().max() > 1e-6, (
            "the first one must not be affine in the context"
        )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("context_dim", [0, 2])
def test_one_input_at_a_time(options, context_dim):
    net = make(context_dim, **options)
    x = torch.randn(5, 4 * options.get("num_features", 1)).double()
    context = torch.randn(5, 2).double() if context_dim else None
    one, everything = net.sequential(context), net(x, context)
    for i in range(4):
        torch.testing.assert_close(one(x, i), everything[:, i])


def test_batches_vmap_and_one_input():
    net = make(2)
    x, context = torch.randn(3, 5, 4).double(), torch.randn(3, 5, 2).double()
    torch.testing.assert_close(vmap(net)(x, context), net(x, context))
    assert make(dim=1)(torch.zeros(7, 1).double()).shape == (7, 1, 3)
    assert make(2, dim=1)(torch.zeros(7, 1).double(), torch.zeros(7, 2).double()).shape == (7, 1, 3)


def test_a_new_network_gives_zeros_and_is_copied_by_its_weights():
    net = MaskedMLP(4, 3)
    assert not net(torch.randn(5, 4)).any()
    assert all("mask" not in key for key in net.state_dict())
    assert MaskedLinear(torch.tensor([[True, False]])).double().mask.dtype == torch.float64


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"order must hold each of 0, ..., 3 once, got \(0, 1, 1, 2\)"):
        MaskedMLP(4, 1, order=(0, 1, 1, 2))
    with pytest.raises(ValueError, match="hidden must hold equal widths"):
        MaskedMLP(4, 1, hidden=(8, 9), residual=True)
    with pytest.raises(ValueError, match="num_outputs must be"):
        MaskedMLP(4, 0)
    with pytest.raises(TypeError, match="dim must be"):
        MaskedMLP(4.0, 1)
