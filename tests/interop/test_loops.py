"""Loops of Python that were recorded and run as ``lax.scan``: the same values and gradients as written out."""

from __future__ import annotations

import random

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.interop.numpyro import to_jax

T = 40


def t(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def model_of(function):
    def model():
        u = pyro.sample("u", dist.Normal(torch.zeros(3, dtype=torch.float64), 0.3).to_event(1))
        out = function(u)
        weight = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).reshape(out.shape)
        pyro.factor("f", (out * weight).sum())

    return model


DATA = torch.linspace(-1.0, 1.0, T, dtype=torch.float64)
TABLE = torch.linspace(-1.0, 1.0, 3 * T, dtype=torch.float64).reshape(3, T).cos()


def recursion(u):
    """Carried, invariant, and every value read after the loop."""
    states = [u]
    for _ in range(T):
        states.append((states[-1] * u.flip(-1)).tanh() + 0.1)
    return torch.stack(states)


def last_alone(u):
    x = u
    for _ in range(T):
        x = (x * 0.9 + u).sin()
    return x


def second_order(u):
    """What is read is one, two and three repetitions old."""
    states = [u, 2.0 * u, u * u]
    for _ in range(T):
        states.append(0.5 * states[-1] - 0.3 * states[-2].sin() + 0.1 * states[-3])
    return torch.stack(states[5:], -1)


def rows_of_data(u):
    """Each repetition reads its own row, by an index inside the loop."""
    x, out = u, []
    for i in range(T):
        x = (x + TABLE[:, i]).tanh() * DATA[i]
        out.append(x.sum())
    return torch.stack(out)


def rows_of_a_latent(u):
    """Rows with gradients, of a tensor made before the loop, last to first."""
    rows = (u[:, None] * TABLE).exp()
    x = u
    for row in reversed(rows.unbind(1)):
        x = (x * row).tanh() + row
    return x


def own_constants(u):
    x = u
    for i in range(T):
        x = (x * t(1.0 / (1 + i))).sin() + t(0.5, 0.25, 0.125)
    return x


def one_after_another(u):
    """A loop over what a loop gave, and one of another length and body."""
    first = [u]
    for _ in range(T):
        first.append((first[-1] * 0.9).cos())
    x = u
    for z in first[1::2]:
        x = (x * z + u).tanh() * z
    for _ in range(T):
        x = x + 0.1 * x.sin().cos()
    return torch.stack([x, first[7], first[-1]])


def one_in_another(u):
    x, out = u, []
    for i in range(10):
        for _ in range(6):
            x = (x * u).tanh() + 0.1
        out.append(x * DATA[i])
    return torch.stack(out, 1)


def matrices(u):
    a = torch.outer(u, u) + torch.eye(3, dtype=torch.float64)
    x = u[:, None]
    for _ in range(T):
        a = torch.linalg.cholesky(a @ a.mT / a.square().sum() + torch.eye(3, dtype=torch.float64))
        x = a @ x / x.square().sum().sqrt()
    return x


#: operations of a repetition, and repetitions; the first ones may read otherwise than those after them
LOOPS = {
    recursion: [(4, T - 1)],
    last_alone: [(3, T - 1)],
    second_order: [(6, T - 2)],
    rows_of_data: [(4, T - 1)],
    rows_of_a_latent: [(3, T - 1)],
    own_constants: [(3, T - 1)],
    one_after_another: [(2, T - 1), (4, T // 2 - 1), (4, T)],
    one_in_another: [(19, 9)],
    matrices: [(14, T - 1)],
}


@pytest.mark.parametrize("function", LOOPS, ids=lambda f: f.__name__)
def test_a_loop_gives_what_it_gives_written_out(function):
    density = to_jax(model_of(function))
    assert density.lowered.loops == LOOPS[function]
    assert density.check(rtol=1e-10) <= 1e-10  # value and gradient against torch


def test_it_is_fewer_operations_for_xla():
    import jax

    density = to_jax(model_of(recursion))
    position = {"u": jax.numpy.zeros(3)}
    with density.precision():
        looped = jax.make_jaxpr(lambda p: density(p))(position)
        density.lowered._plan = None
        plain = jax.make_jaxpr(lambda p: density(p))(position)
    assert any(e.primitive.name == "scan" for e in looped.eqns)
    assert len(looped.eqns) < len(plain.eqns) / 2


@pytest.mark.parametrize("function", [rows_of_data, rows_of_a_latent], ids=lambda f: f.__name__)
def test_rows_that_a_loop_reads_are_taken_together(function):
    """Row by row the gradient alone would be a whole array for each repetition."""
    import jax

    density = to_jax(model_of(function))
    with density.precision():
        jaxpr = jax.make_jaxpr(lambda p: density(p))({"u": jax.numpy.zeros(3)})
    assert sum(e.primitive.name in ("slice", "dynamic_slice", "gather", "squeeze") for e in jaxpr.eqns) < 20


def test_stacked_rows():
    import jax.numpy as jnp
    import numpy as np

    from pyro_dgm.interop.jaxlower.step import Row, gather

    a, b = jnp.arange(12).reshape(6, 2), -jnp.arange(8).reshape(4, 2)
    for picks in ([0, 1, 2], [5, 4, 3, 2, 1, 0], [4, 2, 0], [1, 4], [3], [2, 2], [0, 1, 3, 2, 5]):
        assert np.array_equal(gather([Row(a, i) for i in picks]), np.asarray(a)[picks])
    mixed = gather([Row(a, 0), Row(a, 1), Row(b, 2), jnp.ones(2, int), Row(b, 1), Row(b, 0)])
    assert np.array_equal(mixed, np.stack([a[0], a[1], b[2], [1, 1], b[1], b[0]]))


@pytest.mark.parametrize("period", [1, 2, 7])
def test_what_only_looks_like_a_loop_is_none(period):
    """The same operations, each on a value from somewhere else: no repetition follows from another."""

    generator = random.Random(period)
    picks = [generator.randrange(i + 3) if i % period == 0 else -1 for i in range(120)]

    def function(u):
        x, seen = u, [u, u + 1.0, u + 2.0]
        for pick in picks:
            x = seen[pick] * x
            x = x.tanh() + seen[pick]
            seen.append(x)
        return x

    density = to_jax(model_of(function))
    assert density.check(rtol=1e-10) <= 1e-10
    covered = sum(steps * count for steps, count in density.lowered.loops)
    assert covered < 0.5 * len(density.lowered.steps)


def test_layers_with_weights_of_their_own_are_no_loop():
    layers = [torch.nn.Linear(3, 3).double() for _ in range(30)]
    network = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.Tanh())))
    apart = to_jax(model_of(network))
    assert len(apart.lowered.steps) >= 100
    assert apart.lowered.loops == []
    shared = torch.nn.Sequential(*(part for _ in layers for part in (layers[0], torch.nn.Tanh())))
    assert [count for _, count in to_jax(model_of(shared)).lowered.loops] == [29]


def test_a_hidden_markov_models_sum():
    """The forward algorithm with a plate of sequences, as a user writes it."""
    y = torch.randn(T, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def model(y):
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3, 3, dtype=torch.float64)).to_event(1))
        means = pyro.sample("means", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
        alpha = torch.full((4, 3), 1 / 3, dtype=torch.float64).log()
        for i in range(len(y)):
            seen = dist.Normal(means, 1.0).log_prob(y[i, :, None])
            alpha = (alpha[:, :, None] + rows.log()).logsumexp(1) + seen
        pyro.factor("y", alpha.logsumexp(-1).sum())

    density = to_jax(model, y)
    assert [count for _, count in density.lowered.loops] == [T]
    assert density.check(rtol=1e-10) <= 1e-10


def test_an_operation_called_back_stays_right_in_a_loop(monkeypatch):
    from pyro_dgm.interop.jaxlower import lowerings

    monkeypatch.delitem(lowerings(), torch.ops.aten.erf.default)

    def function(u):
        x = u
        for _ in range(T):
            x = (x * 0.9 + u).erf() + 0.01
        return x

    density = to_jax(model_of(function), on_missing="callback")
    assert density.lowered.loops
    assert density.check(rtol=1e-10) <= 1e-10


def test_chains_run_through_it_together():
    import jax

    density = to_jax(model_of(rows_of_a_latent))
    u = 0.3 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with density.precision():
        values, grads = jax.vmap(jax.value_and_grad(density))({"u": jax.numpy.asarray(u.numpy())})
        values, grads = torch.from_numpy(values.__array__().copy()), torch.from_numpy(grads["u"].__array__().copy())
    for i in range(5):
        value, grad = density.torch_value_and_grad({"u": u[i]})
        torch.testing.assert_close(values[i], value, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grads[i], grad["u"], rtol=1e-9, atol=1e-9)
