"""Models of many kinds: our potential against the one that Pyro's ``initialize_model`` makes, at the same points."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import initialize_model

from pyro_dgm.infer.mcmc import HMC
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential

DATA = torch.tensor([0.2, 0.4, 3.1, 2.6, 5.2])


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian_chain():
    loc = t(0.0, 0.0, 0.0)
    for i in range(3):
        loc = pyro.sample(f"loc_{i}", dist.Normal(loc, 1.0))
    pyro.sample("obs", dist.Normal(loc, 1.0), obs=torch.ones(4, 3).double())


def logistic_regression():
    b = pyro.sample("b", dist.Normal(t(0.0, 0.0), 1.0))
    x = torch.arange(10.0).double().reshape(5, 2) / 10.0
    pyro.sample("y", dist.Bernoulli(logits=(b * x).sum(-1)), obs=t(0, 1, 1, 0, 1))


def dirichlet_categorical():
    p = pyro.sample("p", dist.Dirichlet(t(1.0, 2.0, 1.0)))
    pyro.sample("obs", dist.Categorical(p), obs=torch.tensor([0, 2, 1, 1]))


def beta_bernoulli():
    p = pyro.sample("p", dist.Beta(t(1.1, 1.1), t(1.1, 1.1)))
    with pyro.plate("data", 3, dim=-2):
        pyro.sample("obs", dist.Bernoulli(p), obs=t(0, 1, 1, 1, 0, 0).reshape(3, 2))


def gamma_normal():
    scale = pyro.sample("scale", dist.Gamma(t(1.0, 1.0), t(1.0, 1.0)))
    pyro.sample("obs", dist.Normal(3.0, scale), obs=t(3.5, 1.0, 2.8, 4.0).reshape(2, 2))


def mixture():
    phi = pyro.sample("phi", dist.Dirichlet(t(1.0, 1.0, 1.0)))
    with pyro.plate("clusters", 3):
        means = pyro.sample("means", dist.Normal(torch.arange(3.0).double(), 1.0))
    with pyro.plate("data", len(DATA)):
        k = pyro.sample("k", dist.Categorical(phi))
        pyro.sample("obs", dist.Normal(means[k], 1.0), obs=DATA.double())


def bernoulli_latents():
    p = pyro.sample("p", dist.Beta(t(1.0)[0], 1.0))
    y = pyro.sample("y", dist.Bernoulli(p))
    with pyro.plate("data", len(DATA)):
        z = pyro.sample("z", dist.Bernoulli(0.65 * y + 0.1))
        pyro.sample("obs", dist.Normal(2.0 * z, 1.0), obs=DATA.double())
    pyro.sample("nuisance", dist.Bernoulli(t(0.3)[0]))


def hidden_markov():
    with pyro.plate("states", 2):
        transition = pyro.sample("transition", dist.Dirichlet(t(1.0, 2.0)))
        loc = pyro.sample("loc", dist.Normal(t(0.0)[0], 1.0))
    x = 0
    for i, y in pyro.markov(enumerate(DATA.double())):
        x = pyro.sample(f"x_{i}", dist.Categorical(transition[x]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{i}", dist.Normal(loc[x], 1.0), obs=y)


def nested_plates():
    p = pyro.sample("p", dist.Uniform(t(0.0)[0], 1.0))
    y = pyro.sample("y", dist.Bernoulli(p))
    outer, inner = pyro.plate("outer", 3, dim=-1), pyro.plate("inner", 2, dim=-2)
    with outer:
        v = pyro.sample("v", dist.Bernoulli(0.5 + 0.25 * y))
        with inner:
            z = pyro.sample("z", dist.Bernoulli(0.4 + 0.1 * v))
            pyro.sample("obs", dist.Normal(2.0 * z - 1.0, 1.0), obs=t(1, 0, 0, 1, 1, 0).reshape(2, 3))


def masked():
    m = pyro.sample("m", dist.Normal(t(0.0)[0], 1.0))
    with pyro.plate("data", len(DATA)), poutine.mask(mask=DATA < 4.0), poutine.scale(scale=2.0):
        pyro.sample("obs", dist.Normal(m, 1.0), obs=DATA.double())


def improper():
    """A masked latent that is read: a flat prior, as Pyro's users write it."""
    m = pyro.sample("m", dist.Normal(t(0.0, 0.0), 1.0).mask(False).to_event(1))
    pyro.factor("density", -(m - 1.0).square().sum())
    pyro.deterministic("twice", 2.0 * m)


def sequential():
    m = pyro.sample("m", dist.Normal(t(0.0)[0], 1.0))
    for i in pyro.plate("data", len(DATA)):
        pyro.sample(f"obs_{i}", dist.StudentT(4.0, m, 1.0), obs=DATA[i].double())


CONTINUOUS = [gaussian_chain, logistic_regression, dirichlet_categorical, beta_bernoulli, gamma_normal]
CONTINUOUS += [masked, improper, sequential]
ENUMERATED = [mixture, bernoulli_latents, hidden_markov, nested_plates]


@pytest.mark.parametrize("model", [*CONTINUOUS, *ENUMERATED], ids=lambda m: m.__name__)
def test_potential_is_pyros(model):
    pyro.set_rng_seed(0)
    marked = config_enumerate(model) if model in ENUMERATED else model
    nesting = 2 if model is nested_plates else 1
    initial, theirs, _, _ = initialize_model(marked, max_plate_nesting=nesting if model in ENUMERATED else None)
    ours = ModelPotential(model, (), {})
    chains = 3
    points = {k: torch.randn((chains, *v.shape), dtype=v.dtype) for k, v in initial.items()}
    expected = [theirs({k: v[c] for k, v in points.items()}) for c in range(chains)]
    value, gradient = ours(points)
    torch.testing.assert_close(value, torch.stack(expected))
    for c in range(chains):
        leaves = {k: v[c].clone().requires_grad_() for k, v in points.items()}
        grads = torch.autograd.grad(theirs(leaves), list(leaves.values()))
        for k, g in zip(leaves, grads, strict=True):
            torch.testing.assert_close(gradient[k][c], g)


@pytest.mark.parametrize("kernel", [pyro.infer.HMC, HMC], ids=["pyro", "ours"])
def test_enumeration_wants_its_dimensions_declared(kernel):
    def stray():  # the means are in no plate
        phi = pyro.sample("phi", dist.Dirichlet(torch.ones(3)))
        means = pyro.sample("means", dist.Normal(torch.arange(3.0), 1.0))
        with pyro.plate("data", len(DATA)):
            k = pyro.sample("k", dist.Categorical(phi))
            pyro.sample("obs", dist.Normal(means[k], 1.0), obs=DATA)

    for nesting in (0, 1):
        with pytest.raises(ValueError):
            pyro.infer.MCMC(kernel(stray, max_plate_nesting=nesting), 5, 5, disable_progbar=True).run()


def test_too_few_dimensions_for_plates():
    with pytest.raises(ValueError, match="max_plate_nesting must be at least 1"):
        ModelPotential(mixture, (), {}, max_plate_nesting=0)
    wide = ModelPotential(mixture, (), {}, max_plate_nesting=3)
    points = {k: torch.zeros((1, *v.shape), dtype=v.dtype) for k, v in wide.latents.items()}
    torch.testing.assert_close(wide(points)[0], ModelPotential(mixture, (), {})(points)[0])
