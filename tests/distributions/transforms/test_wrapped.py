"""Pyro's learnable transforms as parts of our flows: no stale cache, parameters registered, contexts."""

import pyro.distributions.transforms as pyros
import pytest
import torch
from torch.distributions.transforms import ExpTransform

from pyro_dgm.distributions.transforms import Compose, Wrapped, as_bijection

F64 = torch.float64


@pytest.mark.parametrize("make", [lambda: pyros.affine_coupling(3, [4]), lambda: pyros.householder(3, 2)])
def test_pyros_transform_after_a_step(make):
    torch.manual_seed(0)
    given = make().double()
    wrapped, x = Wrapped(given, 3), torch.randn(5, 3, dtype=F64)
    y, log_det = wrapped.forward_and_log_det(x)
    wrapped.inverse_and_log_det(y)
    # The parameters are shared with the transform that was given, which is as it was.
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in given.parameters()}
    with torch.no_grad():
        for p in given.parameters():
            p.add_(torch.randn_like(p))
    fresh = torch.autograd.functional.jacobian(lambda v: wrapped.forward_and_log_det(v)[0], x[0])
    after, log_det_after = wrapped.forward_and_log_det(x)
    assert not torch.allclose(after, y)
    torch.testing.assert_close(log_det_after[0], torch.linalg.slogdet(fresh).logabsdet)
    torch.testing.assert_close(wrapped.inverse_and_log_det(after)[0], x)
    del log_det


def test_the_inverse_of_a_module_keeps_its_parameters():
    given = pyros.affine_autoregressive(3, [4])  # in float32: Pyro's inverse has no other dtype
    flow = as_bijection(given.inv, (3,))
    assert {id(p) for p in flow.parameters()} == {id(p) for p in given.parameters()}
    x = torch.randn(5, 3)
    torch.testing.assert_close(flow(given(x)), x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(Wrapped(given.inv, 3)(given(x)), x, rtol=1e-4, atol=1e-4)


def test_a_conditional_transform_of_pyro():
    torch.manual_seed(0)
    given = pyros.conditional_affine_coupling(3, 2, hidden_dims=[4]).double()
    flow = Compose([Wrapped(given, 3, context_dim=2), Wrapped(ExpTransform(), 3)])
    x, context = torch.randn(5, 3, dtype=F64), torch.randn(5, 2, dtype=F64)
    y, log_det = flow.forward_and_log_det(x, context)
    torch.testing.assert_close(y, given.condition(context)(x).exp())
    torch.testing.assert_close(flow.inverse_and_log_det(y, context), (x, -log_det))
    with pytest.raises(TypeError, match="transform must be a ConditionalTransform of Pyro"):
        Wrapped(ExpTransform(), 3, context_dim=2)
    with pytest.raises(TypeError, match="transform must be a torch.distributions.Transform, got Conditional"):
        Wrapped(given, 3)
