"""What cannot become a JAX function says so, and what torch is asked back for is right under JAX's transformations."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_dgm import program
from pyro_dgm.infer import CannotCapture
from pyro_dgm.interop.jaxlower import lowerings
from pyro_dgm.interop.numpyro import CannotConvert, to_jax

aten = torch.ops.aten


def model_of(f):
    """A model with a real latent of shape (3,) and this factor."""

    def model(*args):
        u = pyro.sample("u", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
        pyro.factor("f", f(u, *args).sum())

    return model


def test_a_wrong_gradient_alone_is_refused_and_named(monkeypatch):
    import jax

    right = lowerings()[aten.sinh.default]

    @jax.custom_jvp
    def wrong(x):
        return right(x)

    wrong.defjvp(lambda primals, tangents: (right(primals[0]), tangents[0]))
    monkeypatch.setitem(lowerings(), aten.sinh.default, wrong)
    with pytest.raises(CannotConvert, match=r"gradient of 'u' .*aten\.sinh\.default, on \[\(3,\)\].* another gradient"):
        to_jax(model_of(lambda u: u.cos() + u.sinh()))


def test_a_gradient_that_torch_stops_behind_the_graph_is_refused():
    def stopped(u):
        with torch.no_grad():
            return u.exp()

    with pytest.raises(CannotConvert, match="each operation agrees by itself"):
        to_jax(model_of(lambda u: u * stopped(u)))


def test_control_flow_on_values_is_refused():
    with pytest.raises(CannotCapture, match="depends on values"):
        to_jax(model_of(lambda u: u if bool(u[0] > 0) else 2 * u))


def test_a_mask_that_depends_on_data_is_refused():
    data = torch.tensor([1.0, float("nan"), 2.0], dtype=torch.float64)
    with pytest.raises(CannotConvert, match=r"aten\.index\.Tensor.*boolean mask.*torch\.where"):
        to_jax(model_of(lambda u, x: (u - x)[~torch.isnan(x)]), data)


def test_draws_outside_of_sites_are_refused():
    with pytest.raises(CannotCapture, match="random numbers outside its latent sites"):
        to_jax(model_of(lambda u: u * torch.randn(3).double()))
    with pytest.raises(CannotCapture, match="random numbers outside its latent sites"):  # nor called back
        to_jax(model_of(lambda u: u * torch.randn(3).double()), on_missing="callback")


def test_a_write_to_what_is_outside_is_refused():
    count = torch.zeros(3, dtype=torch.float64)

    def counted(u):
        count.add_(1.0)
        return u * count

    with pytest.raises(CannotCapture, match=r"writes in place to a tensor of shape \(3,\) from outside"):
        to_jax(model_of(counted))


@pytest.mark.parametrize("hidden", [False, True])
def test_batch_norm_in_training_mode(hidden):
    """A module that can be found is put in evaluation mode; one in a closure cannot, and its statistics would move."""
    norm = nn.BatchNorm1d(3).double()
    f = lambda u: norm(torch.stack([u, 2 * u]))  # noqa: E731
    if hidden:
        with pytest.raises(CannotCapture, match=r"in place|training mode"):
            to_jax(model_of(f))
        return

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self):
            model_of(f)()

    assert to_jax(Model()).error < 1e-10
    assert norm.training


def test_on_missing_must_be_known():
    with pytest.raises(ValueError, match="on_missing must be 'error' or 'callback', got 'ignore'"):
        to_jax(model_of(lambda u: u), on_missing="ignore")
    with pytest.raises(TypeError, match=r"must have \.model"):
        to_jax(3)


def test_callbacks_under_jit_vmap_and_grad(monkeypatch):
    """Operations with several results, integer arguments and no gradient in one of them, all by torch."""
    import jax
    import jax.numpy as jnp

    for op in (aten.sort.default, aten.gather.default, aten.exp.default):
        monkeypatch.delitem(lowerings(), op)
    index = torch.tensor([2, 0, 0])
    model = model_of(lambda u: u.sort().values * torch.arange(3) + u.gather(0, index).exp())
    with pytest.raises(CannotConvert, match=r"aten\.exp\.default, aten\.gather\.default, aten\.sort\.default"):
        to_jax(model)
    density = to_jax(model, on_missing="callback")
    assert set(density.callbacks) == {"aten.sort.default", "aten.gather.default", "aten.exp.default"}
    points = density.points(4, seed=1)
    with density.precision():
        u = {"u": jnp.asarray(np.stack([p["u"].numpy() for p in points]))}
        values, gradients = jax.jit(jax.vmap(jax.value_and_grad(density)))(u)
    for i, point in enumerate(points):
        value, gradient = density.torch_value_and_grad(point)
        np.testing.assert_allclose(values[i], value, rtol=1e-10)
        np.testing.assert_allclose(gradients["u"][i], gradient["u"], rtol=1e-10)


def test_data_written_behind_autograd_keeps_its_gradient_and_detached_data_has_none():
    def jittered(u):
        x = u.clone()
        x.data.add_(0.1 * x.data.abs())
        return x.exp() * u.detach()

    assert to_jax(model_of(jittered)).error < 1e-10


def test_the_guide_of_a_program_is_not_read():
    weights = torch.ones(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
    density = to_jax(program(model_of(lambda u: u * weights[0]), model_of(lambda u: u * weights[1])))
    assert [t.data_ptr() for t in density.externals.values()] == [weights[0].data_ptr()]
