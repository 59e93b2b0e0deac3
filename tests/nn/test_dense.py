"""Derivatives of fully connected networks in closed form, against those of torch."""

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from pyro_dgm.nn import LipSwish
from pyro_dgm.nn.dense import DenseFunction, with_slope


def function(hidden, activation=nn.Tanh, batch=5):
    widths = [3, *hidden, 3]
    weights = [torch.randn(b, a, dtype=torch.float64, requires_grad=True) for a, b in zip(widths, widths[1:])]
    biases = [torch.randn(b, dtype=torch.float64) for b in widths[1:]]
    shift = torch.randn(batch, widths[1], dtype=torch.float64)
    return DenseFunction(weights, biases, [activation().double() for _ in hidden], shift)


@pytest.mark.parametrize("hidden", [(), (4,), (4, 5), (4, 5, 6)])
def test_derivatives_are_those_of_torch(hidden):
    f, x = function(hidden), torch.randn(5, 3, dtype=torch.float64)
    jacobian = vmap(jacrev(lambda one, shift: f(one, shift)))(x, f.shift)
    at, v = f.linearize(x), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(at.value, f(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at.jacobian(), jacobian, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(at.push(v), (jacobian @ v[..., None])[..., 0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(at.pull(v), (v[:, None] @ jacobian)[:, 0], rtol=1e-11, atol=1e-11)
    value, trace = f.value_and_trace(x)
    torch.testing.assert_close(value, f(x), rtol=1e-12, atol=1e-12)
    expected = jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(trace, expected, rtol=1e-11, atol=1e-11)
    found = torch.autograd.grad(trace.square().sum(), f.weights)
    for g, other in zip(found, torch.autograd.grad(expected.square().sum(), f.weights), strict=True):
        torch.testing.assert_close(g, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", [nn.Tanh, LipSwish, nn.Softplus, nn.ELU, nn.SiLU])
def test_slopes_of_activations(activation):
    module, x = activation().double(), torch.linspace(-5, 5, 40, dtype=torch.float64, requires_grad=True)
    value, slope = with_slope(module, x)
    torch.testing.assert_close(value, module(x), rtol=1e-14, atol=1e-14)
    (expected,) = torch.autograd.grad(module(x).sum(), x)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)
