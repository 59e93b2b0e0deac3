"""The affine function whose shift is in units of its scale, against the formula."""

import torch

from pyro_dgm.distributions.transforms import Autoregressive
from pyro_dgm.distributions.transforms.scaled_shift import ScaledShiftFamily


def test_formula_and_inverse():
    family = ScaledShiftFamily(3.0)
    x, parameters = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, 2, dtype=torch.float64)
    y, log_derivative = family(x, parameters)
    log_scale = 3.0 * torch.tanh(parameters[..., 1] / 3.0)
    torch.testing.assert_close(y, (x + parameters[..., 0]) * log_scale.exp())
    torch.testing.assert_close(log_derivative, log_scale)
    back, inverse = family.inverse(y, parameters)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, -log_scale)


def test_in_an_autoregressive_layer():
    torch.manual_seed(0)
    flow = Autoregressive(4, ScaledShiftFamily(), hidden=(8,)).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(6, 4, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    back, _ = flow.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow.forward_and_log_det(v[None])[0][0]))(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1])
