"""Residual flows: the Lipschitz bound, a linear block in closed form, the roulette estimate, the inverse's gradient."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from pyro_dgm.distributions import transforms as t
from pyro_dgm.nn import LipschitzMLP, LipSwish
from pyro_dgm.nn.lipschitz import spectral_norm_bound


def perturbed(transform, spread=0.5):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(torch.randn_like(p) * spread)
    return transform.double()


@pytest.mark.parametrize("shape", [(64, 64), (3, 50), (50, 3), (1, 1), (100, 100)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_spectral_norm_is_bounded_from_above_and_closely(shape, scale):
    weight = torch.randn(shape, dtype=torch.float64) * scale
    exact, bound = torch.linalg.matrix_norm(weight, ord=2), spectral_norm_bound(weight)
    assert exact * (1 - 1e-12) <= bound <= 1.035 * exact
    equal = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q  # all singular values one: the worst case
    assert 1 <= spectral_norm_bound(equal) <= 64 ** (1 / 128) + 1e-9


def test_the_bound_has_a_gradient_and_takes_zero():
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spectral_norm_bound, weight)
    zero = torch.zeros(4, 3, requires_grad=True)
    spectral_norm_bound(zero).backward()
    assert spectral_norm_bound(zero) < 1e-9 and torch.equal(zero.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
def test_the_network_is_a_contraction_for_any_weights(lipschitz):
    network = perturbed(LipschitzMLP(3, 3, (16, 16), context_dim=2, lipschitz=lipschitz), spread=20.0)
    x, context = torch.randn(500, 3, dtype=torch.float64) * 3, torch.randn(500, 2, dtype=torch.float64)
    jacobian = network.function(context).linearize(x).jacobian()
    largest = torch.linalg.matrix_norm(jacobian, ord=2).max()
    assert 0.05 * lipschitz < largest <= lipschitz


def test_a_linear_block_in_closed_form():
    """Without hidden layers it is y = (I + W) x + b."""
    flow = t.Residual(3, hidden=(), lipschitz=0.9).double()
    weight = torch.randn(3, 3, dtype=torch.float64)
    weight = 0.6 * weight / torch.linalg.matrix_norm(weight, ord=2)
    with torch.no_grad():
        flow.network.layers[0].weight.copy_(weight)
        flow.network.layers[0].bias.fill_(0.5)
    matrix, x = torch.eye(3, dtype=torch.float64) + weight, torch.randn(5, 3, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, x @ matrix.T + 0.5, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det, matrix.logdet().expand(5), rtol=1e-12, atol=1e-12)
    back, _ = flow.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)


def test_the_inverse_reaches_full_precision_where_the_contraction_is_weak():
    flow = perturbed(t.Residual(4, hidden=(32, 32), lipschitz=0.99), spread=3.0)
    x = torch.randn(50, 4, dtype=torch.float64) * 3
    torch.testing.assert_close(flow.inv(flow(x)), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("log_det", ["exact", "roulette"])
def test_the_inverse_has_the_gradient_of_the_implicit_function(log_det):
    """x(y, w) solves f(x, w) = y: dx/dy = J^-1 and dx/dw = -J^-1 df/dw."""
    flow = perturbed(t.Residual(3, hidden=(8,), lipschitz=0.8, log_det=log_det))
    y = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x = flow.inv(y)
    value = flow.network(x.detach())
    torch.testing.assert_close(x.detach() + value, y.detach(), rtol=0, atol=1e-8)
    jacobian = jacrev(lambda z: z + flow.network(z))(x.detach())
    of_weights = jacrev(lambda w: functional_call(flow.network, w, (x.detach(),)))(
        dict(flow.network.named_parameters())
    )
    direction = torch.randn(3, dtype=torch.float64)
    parameters = list(flow.network.parameters())
    found, *of_found = torch.autograd.grad(x @ direction, [y, *parameters])
    pulled = torch.linalg.solve(jacobian.T, direction)
    torch.testing.assert_close(found, pulled, rtol=1e-7, atol=1e-7)
    for g, expected in zip(of_found, of_weights.values(), strict=True):
        torch.testing.assert_close(g, -torch.einsum("i,i...->...", pulled, expected), rtol=1e-7, atol=1e-7)


def test_the_roulette_is_unbiased():
    """Value and gradient against the exact ones, to four standard errors over 2000 calls of 8 values each."""
    exact = perturbed(t.Residual(3, hidden=(8,), lipschitz=0.7), spread=1.0)
    flow = t.Residual(3, hidden=(8,), lipschitz=0.7, log_det="roulette", num_terms=1).double()
    flow.load_state_dict(exact.state_dict())
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    weights = [x, *flow.parameters()]
    expected = exact.forward_and_log_det(x)[1].mean()
    true = torch.cat([g.flatten() for g in torch.autograd.grad(expected, [x, *exact.parameters()], allow_unused=True)
                      if g is not None])  # fmt: skip
    values, gradients = [], []
    torch.manual_seed(1)
    for _ in range(2000):
        value = flow.forward_and_log_det(x)[1].mean()
        values.append(value.detach())
        found = torch.autograd.grad(value, weights, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    for draws, truth in ((torch.stack(values)[:, None], expected[None]), (torch.stack(gradients), true)):
        error = draws.std(0) / len(draws) ** 0.5
        assert error.max() < 0.02
        used = error > 1e-12
        assert ((draws.mean(0) - truth).abs()[used] < 4.5 * error[used]).all()
    assert expected.abs() > 0.05


def test_the_roulette_in_both_directions_and_under_no_grad():
    flow = perturbed(t.Residual(3, hidden=(8,), lipschitz=0.5, log_det="roulette"))
    x = torch.randn(6, 3, dtype=torch.float64)
    with torch.no_grad():
        y, log_det = flow.forward_and_log_det(x)
        back, other = flow.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    assert log_det.shape == other.shape == (6,) and not log_det.requires_grad
    back, other = flow.inverse_and_log_det(y)
    (back.sum() + other.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in flow.parameters())


def test_a_new_block_is_the_identity():
    x = torch.randn(5, 3)
    y, log_det = t.Residual(3).forward_and_log_det(x)
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(5))


def test_wrong_arguments_are_refused():
    for lipschitz in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="lipschitz must be above 0 and below 1"):
            t.Residual(3, lipschitz=lipschitz)
    with pytest.raises(ValueError, match="log_det must be 'exact' or 'roulette', got 'trace'"):
        t.Residual(3, log_det="trace")
    with pytest.raises(ValueError, match="stop_probability must be above 0 and below 1"):
        t.Residual(3, stop_probability=1.0)
    with pytest.raises(ValueError, match=r"slope of at most one.*SiLU has 1.1"):
        t.Residual(3, activation=nn.SiLU)
    t.Residual(3, activation=nn.Tanh)
    t.Residual(3, activation=LipSwish)
    with pytest.raises(TypeError, match="num_iterations must be an integer"):
        t.Residual(3, num_iterations=2.5)


def test_every_term_of_the_roulette_counts():
    """A linear block with eigenvalues up to 0.8, where all powers matter, over 20 000 values in 400 calls."""
    flow = t.Residual(2, hidden=(), lipschitz=0.9, log_det="roulette", num_terms=2).double()
    weight = torch.tensor([[0.75, 0.1], [-0.1, -0.6]], dtype=torch.float64)
    with torch.no_grad():
        flow.network.layers[0].weight.copy_(weight)
    expected = (torch.eye(2, dtype=torch.float64) + weight).logdet()
    torch.manual_seed(1)
    with torch.no_grad():
        draws = torch.stack([flow.forward_and_log_det(torch.zeros(50, 2).double())[1].mean() for _ in range(400)])
    error = draws.std() / len(draws) ** 0.5
    assert error < 0.03 and (draws.mean() - expected).abs() < 4 * error
    assert (expected - weight.trace()).abs() > 10 * error  # the first term alone would not do
