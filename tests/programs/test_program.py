"""Programs: pairs of callables, their parameters, their batches."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_dgm
from pyro_dgm.models import VAE
from pyro_dgm.programs import Program, as_program, split_batch


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_parameters_of_modules_and_bound_methods():
    vae = VAE((4,), 2, hidden=(8,))
    p = pyro_dgm.program(vae.model, vae.guide)
    assert {id(q) for q in p.parameters()} == {id(q) for q in vae.parameters()}
    guide = AutoNormal(model)
    assert guide in list(pyro_dgm.program(model, guide).modules())


def test_as_program():
    vae = VAE((4,), 2, hidden=(8,))
    assert as_program(vae) is vae
    assert isinstance(as_program((model, AutoNormal(model))), Program)
    with pytest.raises(TypeError, match=r"program must have \.model and \.guide.*got int"):
        as_program(3)


def test_not_callable_is_named():
    with pytest.raises(TypeError, match="guide must be a callable with Pyro sites, got int"):
        pyro_dgm.program(model, 3)


def test_split_batch():
    x = torch.zeros(3)
    assert split_batch(x) == ((x,), {})
    assert split_batch([x, 1]) == ((x, 1), {})
    assert split_batch({"x": x}) == ((), {"x": x})
