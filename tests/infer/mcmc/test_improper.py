"""Improper priors: what cannot be drawn can still be inferred."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_median, init_to_value
from torch.distributions import constraints

import pyro_dgm
from pyro_dgm.distributions import EnergyDistribution
from pyro_dgm.infer.mcmc import HMC, MCMC
from tests.infer.mcmc.test_exact import in_standard_errors

F64 = torch.float64
OPTIONS = {"num_samples": 400, "warmup_steps": 300, "num_chains": 16, "seed": 0, "progress": False}


def flat(x):
    """A flat prior on the mean: its posterior is the likelihood's own normal."""
    loc = pyro.sample("loc", dist.ImproperUniform(constraints.real, (), ()))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(loc, 2.0), obs=x)


def factor_graph():
    """Pyro's own example: three normals, one after another, given the last."""
    xyz = pyro.sample("xyz", dist.ImproperUniform(constraints.real, (), (3,)))
    x, y, z = xyz.unbind(-1)
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)
    pyro.sample("z", dist.Normal(y, 1.0), obs=z)


@pytest.mark.parametrize("method", ["hmc", "chees", "nuts-numpyro"])
def test_a_flat_priors_posterior_is_the_likelihood(method):
    if method == "nuts-numpyro":
        pytest.importorskip("numpyro")
    x = torch.tensor([1.0, 3.0, 5.0, 0.0], dtype=F64)
    loc = pyro_dgm.sample_posterior(flat, x, method=method, **OPTIONS)["loc"].double()
    assert in_standard_errors(loc, x.mean()).max() < 4
    assert in_standard_errors((loc - x.mean()).square(), torch.tensor(1.0)).max() < 4


def test_a_factor_graph_is_the_program():
    xyz = pyro_dgm.sample_posterior(factor_graph, method="hmc", **OPTIONS)["xyz"].double()
    wanted = torch.tensor([[1.0, 1, 1], [1, 2, 2], [1, 2, 3]], dtype=F64)
    assert in_standard_errors(xyz[..., :, None] * xyz[..., None, :], wanted).max() < 4


def test_constrained_supports_in_a_plate():
    """p(s) flat on (0, inf), x given s exponential of rate s: the posterior is Gamma(2, x)."""
    x = torch.tensor([0.5, 2.0])

    def model():
        with pyro.plate("n", 2):
            s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
            pyro.sample("x", dist.Exponential(s), obs=x)

    s = pyro_dgm.sample_posterior(model, method="hmc", **OPTIONS)["s"].double()
    assert s.shape == (16, 400, 2)
    assert in_standard_errors(s, 2 / x.double()).max() < 4
    assert in_standard_errors(s.square(), 6 / x.double().square()).max() < 4


def test_a_simplex():
    """Flat on the simplex is Dirichlet(1, 1, 1): the same posterior."""

    def model(counts):
        p = pyro.sample("p", dist.ImproperUniform(constraints.simplex, (), (3,)))
        pyro.factor("counts", (counts * p.log()).sum())

    counts = torch.tensor([6.0, 3.0, 1.0])
    p = pyro_dgm.sample_posterior(model, counts, method="hmc", **OPTIONS)["p"].double()
    assert in_standard_errors(p, (counts.double() + 1) / 13).max() < 4


def test_where_chains_begin():
    x = torch.tensor([1.0, 3.0])
    with pytest.raises(ValueError, match="cannot be drawn from"):
        MCMC(HMC(flat, init_strategy="prior"), **OPTIONS).run(x)
    with pytest.raises(ValueError, match="cannot be drawn from"):
        MCMC(HMC(flat, init_strategy=init_to_median), **OPTIONS).run(x)
    start = init_to_value(values={"loc": torch.tensor(7.0)})
    mcmc = MCMC(HMC(flat, init_strategy=start), 1, 0, 4, seed=0, progress=False)
    mcmc.run(x)
    assert mcmc.get_samples()["loc"].shape == (4,)


def test_a_normaliser_that_depends_on_latents_is_not_left_out():
    """Z(width) of exp(-x^2 / width) is missing from log_prob: the posterior of width would be another's."""

    def energy_of(width):
        return EnergyDistribution(lambda v: (v.square() / width).sum(-1), (1,), validate_args=False)

    def observed(x):
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("x", energy_of(width), obs=x)

    def latent(x):
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        z = pyro.sample("z", energy_of(width))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[0])

    for model, site in ((observed, "x"), (latent, "z")):
        with pytest.raises(ValueError, match=rf"site '{site}' \(EnergyDistribution\).*latents \['width'\]"):
            pyro_dgm.sample_posterior(model, torch.ones(3, 1), method="hmc", num_samples=5, progress=False)

    net = torch.nn.Linear(1, 1)

    def fixed(x):
        """Parameters are constants here: a prior whose log Z is one number is a prior."""
        z = pyro.sample("z", EnergyDistribution(lambda v: net(v).squeeze(-1) + v.square().sum(-1), (1,)))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[0])

    post = pyro_dgm.sample_posterior(fixed, torch.ones(3, 1), method="hmc", num_samples=5, seed=0, progress=False)
    assert post["z"].shape == (4, 5, 1)
