"""Continuous flows: a linear equation in closed form, the order of the solver, the trace's estimate, other solvers."""

import pytest
import torch

from pyro_dgm.distributions import transforms as t
from pyro_dgm.ops.ode import runge_kutta_4


def perturbed(transform, spread=0.5):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(torch.randn_like(p) * spread)
    return transform.double()


def test_a_linear_equation_in_closed_form():
    """Without hidden layers z' = W z + b + t w; with b = w = 0 the flow is the matrix exponential."""
    flow = t.Continuous(3, hidden=(), num_steps=64).double()
    weight = torch.randn(3, 3, dtype=torch.float64)
    with torch.no_grad():
        flow.network.layers[0].weight.copy_(weight)
    x = torch.randn(5, 3, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, x @ torch.linalg.matrix_exp(weight).T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det, weight.trace().expand(5), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        flow.per_time.fill_(2.0)
        flow.network.layers[0].weight.zero_()
    torch.testing.assert_close(flow(x), x + 1, rtol=1e-12, atol=1e-12)  # the integral of 2 t


def test_the_error_falls_with_the_fourth_power_of_the_step():
    def error(num_steps):
        y0 = torch.ones((), dtype=torch.float64)
        return runge_kutta_4(lambda s, y: y * s, y0, 0.0, 2.0, num_steps=num_steps).log() - 2

    assert (error(20) / error(40)).item() == pytest.approx(16, rel=0.1)
    with pytest.raises(ValueError, match="num_steps must be"):
        error(0)


@pytest.mark.parametrize("hidden", [(8,), (8, 8), (8, 8, 8)])
def test_the_estimated_trace_is_unbiased(hidden):
    """To four and a half standard errors over 20 000 values; in its own direction it leaves the value as it is."""
    exact = perturbed(t.Continuous(3, hidden=hidden, num_steps=4))
    flow = t.Continuous(3, hidden=hidden, num_steps=4, trace="hutchinson").double()
    flow.load_state_dict(exact.state_dict())
    x = torch.randn(3, dtype=torch.float64).expand(20_000, 3)
    torch.manual_seed(1)
    with torch.no_grad():
        y, log_det = flow.forward_and_log_det(x)
        value, expected = exact.forward_and_log_det(x[0])
    torch.testing.assert_close(y[7], value)
    error = log_det.std() / len(x) ** 0.5
    assert 0 < error < 0.02 and (log_det.mean() - expected).abs() < 4.5 * error


def test_the_noise_is_the_same_along_the_path():
    """Otherwise the integrand would not be a smooth function of time: the estimate would not converge in the steps."""
    flow, estimates = perturbed(t.Continuous(3, hidden=(8,), trace="hutchinson")), []
    for flow.num_steps in (10, 40):
        torch.manual_seed(2)
        estimates.append(flow.forward_and_log_det(torch.ones(50, 3, dtype=torch.float64))[1])
    torch.testing.assert_close(estimates[0], estimates[1], rtol=0, atol=1e-4)


def test_a_solver_of_the_users_own():
    flow = perturbed(t.Continuous(3, hidden=(8,), num_steps=5))
    calls = []

    def solver(function, y0, t0, t1):
        calls.append((t0, t1))
        return runge_kutta_4(function, y0, t0, t1, num_steps=5)

    own = t.Continuous(3, hidden=(8,), solver=solver).double()
    own.load_state_dict(flow.state_dict())
    x = torch.randn(4, 3, dtype=torch.float64)
    for found, expected in zip(own.forward_and_log_det(x), flow.forward_and_log_det(x), strict=True):
        torch.testing.assert_close(found, expected)
    own.inverse_and_log_det(x)
    assert calls == [(0.0, 1.0), (1.0, 0.0)]


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_torchdiffeq_agrees_with_many_small_steps(adjoint, trace):
    """Value, log-determinant and the gradients of parameters, input and context."""
    pytest.importorskip("torchdiffeq")
    from pyro_dgm.interop.torchdiffeq import solver

    fine = perturbed(t.Continuous(2, hidden=(8, 8), context_dim=3, num_steps=100, trace=trace))
    flow = t.Continuous(2, hidden=(8, 8), context_dim=3, trace=trace, solver=solver(rtol=1e-9, atol=1e-9,
                                                                                    adjoint=adjoint))  # fmt: skip
    flow.double().load_state_dict(fine.state_dict())
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    context = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for one in (fine, flow):
        for direction in ("forward", "inverse"):
            torch.manual_seed(3)
            value, log_det = getattr(one, f"{direction}_and_log_det")(x, context)
            total = (value * value.detach().sin()).sum() + (log_det * torch.arange(4.0, dtype=torch.float64)).sum()
            gradients = torch.autograd.grad(total, [x, context, *one.parameters()], allow_unused=True)
            results.append([value, log_det, *(torch.zeros(()) if g is None else g for g in gradients)])
    for expected, found in ((results[0], results[2]), (results[1], results[3])):
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b.double(), a.double().expand(b.shape), rtol=1e-6, atol=1e-6)


def test_a_method_that_torchdiffeq_does_not_have_is_refused():
    pytest.importorskip("torchdiffeq")
    from pyro_dgm.interop.torchdiffeq import solver

    with pytest.raises(ValueError, match="dopri6"):
        solver("dopri6")
    with pytest.raises(ValueError, match="rtol must be positive"):
        solver(rtol=0.0)


def test_a_new_flow_is_the_identity():
    x = torch.randn(5, 3)
    for hidden in ((), (16, 16)):
        y, log_det = t.Continuous(3, hidden=hidden).forward_and_log_det(x)
        assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(5))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="trace must be 'exact' or 'hutchinson', got 'none'"):
        t.Continuous(3, trace="none")
    with pytest.raises(TypeError, match="solver must be a function"):
        t.Continuous(3, solver="dopri5")
    with pytest.raises(ValueError, match="num_steps must be"):
        t.Continuous(3, num_steps=0)
