"""Transformer flows: patches, who depends on whom, one pass against one step after another, a closed form."""

import pytest
import torch
from torch.func import jacrev

from pyro_dgm.distributions import transforms as t
from pyro_dgm.nn import CausalTransformer


def perturbed(module, spread=0.3):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * spread)
    return module.double()


SMALL = {"width": 8, "num_heads": 2, "num_layers": 2}


def test_an_output_depends_on_the_tokens_before_it_alone():
    net = perturbed(CausalTransformer(5, 3, 2, **SMALL))
    jacobian = jacrev(net)(torch.randn(5, 3, dtype=torch.float64))  # (output's place, 2, input's place, 3)
    depends = (jacobian != 0).any(1).any(-1)
    assert torch.equal(depends, torch.ones(5, 5, dtype=torch.bool).tril(-1))


def test_one_token_after_another_gives_what_one_pass_gives():
    net = perturbed(CausalTransformer(5, 3, 2, context_dim=4, **SMALL))
    tokens, context = torch.randn(2, 6, 5, 3).double(), torch.randn(2, 6, 4).double()
    outputs_of_next = net.sequential(torch.Size((2, 6)), context)
    found = [outputs_of_next(tokens[..., i - 1, :] if i else None) for i in range(5)]
    torch.testing.assert_close(torch.stack(found, -2), net(tokens, context), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(net(tokens, context + 1), net(tokens, context))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_jacobian_is_block_triangular_in_the_order_of_the_patches(reverse):
    flow = perturbed(t.TransformerAutoregressive((2, 4, 6), patch_size=2, reverse=reverse, **SMALL))
    jacobian = jacrev(lambda y: flow.inv(y))(torch.randn(2, 4, 6, dtype=torch.float64))
    index = torch.arange(48).reshape(2, 4, 6)
    # Patches row by row, channels of a patch together.
    patches = [index[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten() for i in range(2) for j in range(3)]
    order = torch.cat(patches[::-1] if reverse else patches)
    in_order = jacobian.reshape(48, 48)[order][:, order].reshape(6, 8, 6, 8)
    depends = (in_order != 0).any(1).any(-1)
    assert torch.equal(depends, torch.ones(6, 6, dtype=torch.bool).tril())
    within = in_order[torch.arange(6), :, torch.arange(6)]
    assert torch.equal(within != 0, torch.eye(8, dtype=torch.bool).expand(6, 8, 8))


def test_with_weights_of_zero_in_the_last_layer_it_is_a_shift_and_a_scale():
    flow = t.TransformerAutoregressive(4, patch_size=2, **SMALL).double()
    with torch.no_grad():
        flow.network.last.bias.copy_(torch.tensor([1.0, -1.0, 0.5, -0.25]))
    scale = (5 * torch.tensor([0.5, -0.25], dtype=torch.float64).div(5).tanh()).repeat(2)
    x = torch.randn(7, 4, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    shift = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(2)
    torch.testing.assert_close(y, x * scale.exp() + shift, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det, scale.sum().expand(7), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "patch"), [(6, 3), ((6,), 1), (1, 1), ((4, 6), 2), ((3, 4, 4), 4)])
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_events_of_all_kinds_there_and_back(shape, patch, batch):
    flow = perturbed(t.TransformerAutoregressive(shape, patch_size=patch, reverse=True, **SMALL))
    x = torch.randn((*batch, *flow.event_shape), dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    back, back_log_det = flow.inverse_and_log_det(y)
    assert log_det.shape == batch
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=1e-10)


def test_a_new_flow_is_the_identity():
    x = torch.randn(5, 4)
    y, log_det = t.TransformerAutoregressive(4).forward_and_log_det(x)
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(5))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="patch_size must divide 5, got 2"):
        t.TransformerAutoregressive(5, patch_size=2)
    with pytest.raises(ValueError, match="patch_size must divide 4 and 6, got 4"):
        t.TransformerAutoregressive((1, 4, 6), patch_size=4)
    with pytest.raises(ValueError, match="event_shape must be that of a vector or an image"):
        t.TransformerAutoregressive((1, 2, 4, 6))
    with pytest.raises(ValueError, match="width must be a multiple of num_heads, got 10 and 4"):
        t.TransformerAutoregressive(4, width=10)
    with pytest.raises(ValueError, match="max_log_scale must be positive"):
        t.TransformerAutoregressive(4, max_log_scale=0.0)
