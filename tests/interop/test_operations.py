"""Rules of the table beyond what distributions come to: value and gradient against torch's."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.interop.numpyro import CannotConvert, to_jax
from tests.interop.op_cases import CASES

PAIRS = [(room, name) for room, cases in CASES.items() for name in cases]


def model_of(case):
    def model():
        u = pyro.sample("u", dist.Normal(torch.zeros(4, 6, dtype=torch.float64), 1.0).to_event(2))
        out = case(u)
        weight = torch.linspace(0.5, 1.5, max(out.numel(), 1), dtype=torch.float64).reshape(out.shape)
        pyro.factor("f", (out * weight).sum())

    return model


#: of these torch's gradient holds a constant in single precision, for float64 tensors too; with the right gradient
SINGLE = {
    "celu": (
        lambda u: torch.nn.functional.celu(u, 0.7),
        lambda u: torch.where(u > 0, torch.ones_like(u), (u / 0.7).exp()),
    ),
    "hardsigmoid": (
        torch.nn.functional.hardsigmoid,
        lambda u: torch.where(u.abs() < 3, torch.full_like(u, 1 / 6), torch.zeros_like(u)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("room", "name"), PAIRS, ids=[f"{r}-{n}" for r, n in PAIRS])
def test_rule(room, name):
    density = to_jax(model_of(CASES[room][name]))
    rtol = 6e-8 if name in SINGLE else 1e-10
    assert density.check(rtol=rtol) <= rtol


@pytest.mark.parametrize(("function", "slope"), SINGLE.values(), ids=SINGLE)
def test_where_torchs_gradient_is_of_single_precision_jaxs_is_exact(function, slope):
    density = to_jax(model_of(function))
    u = torch.linspace(-2.5, 3.5, 24, dtype=torch.float64).reshape(4, 6)
    _, found = density.value_and_grad({"u": u})
    weight = torch.linspace(0.5, 1.5, 24, dtype=torch.float64).reshape(4, 6)
    torch.testing.assert_close(found["u"], slope(u) * weight - u, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["writes", "scatter"])
def test_writes_are_not_lost(name):
    density = to_jax(model_of(CASES["indexing"][name]))
    assert density.check(rtol=1e-10) <= 1e-10


def test_an_operation_without_a_rule_is_named_and_called_back_on_demand(monkeypatch):
    from pyro_dgm.interop.jaxlower import lowerings

    table = lowerings()
    monkeypatch.delitem(table, torch.ops.aten.erf.default)
    model = model_of(lambda u: u.erf())
    with pytest.raises(CannotConvert, match=r"aten\.erf\.default.*on_missing='callback'|erf"):
        to_jax(model)
    density = to_jax(model, on_missing="callback")
    assert any("erf" in name for name in density.callbacks)
    assert density.error < 1e-10  # its gradient is torch's too


def test_a_wrong_rule_is_refused_and_named(monkeypatch):
    """One rule broken: the check before use finds it, and says which."""
    import jax.numpy as jnp

    from pyro_dgm.interop.jaxlower import lowerings

    monkeypatch.setitem(lowerings(), torch.ops.aten.sinh.default, lambda x: jnp.sinh(x) * 1.001)
    with pytest.raises(CannotConvert, match=r"aten\.sinh\.default"):
        to_jax(model_of(lambda u: u.sinh()))
