"""Gradients beside Pyro's and against the exact ones: mini-batches, sites without rsample, plates, Pyro's ``SVI``."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import SVI

from pyro_dgm.infer import ELBO
from tests.infer.pyro_compat.enumerated_programs import ENUMERATED
from tests.infer.pyro_compat.programs import PROGRAMS
from tests.infer.pyro_compat.test_programs import PAIRS, STRICTER

pytestmark = pytest.mark.uses_param_store
X = torch.tensor([-0.5, 2.0])
#: gradient of the loss at loc = 0 and scale = 1, with a prior and a likelihood of unit scale
EXACT = {"loc": -X, "scale": torch.tensor([2.0])}


def program(normal, size, nuisance):
    def model(rows):
        if nuisance:
            pyro.sample("first", normal(0.0, 1.0))
        with pyro.plate("data", len(X), size, rows) as index:
            z = pyro.sample("z", normal(0.0, 1.0).expand([len(index)]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[index])
        if nuisance:
            pyro.sample("last", normal(2.0, 3.0))

    def guide(rows):
        loc, scale = pyro.param("loc", torch.zeros(2)), pyro.param("scale", torch.ones(1))
        if nuisance:
            pyro.sample("last", normal(2.0, 3.0))
        with pyro.plate("data", len(X), size, rows) as index:
            pyro.sample("z", normal(loc[index], scale))
        if nuisance:
            pyro.sample("first", normal(0.0, 1.0))

    return model, guide


def gradients(objective, model, guide, batches):
    """Average gradient over mini-batches that are given."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, pyro.optim.Adam({}), loss=objective)
    for rows in batches:
        svi.loss_and_grads(model, guide, rows)
    return {n: p.grad / len(batches) for n, p in pyro.get_param_store().named_parameters()}


@pytest.mark.parametrize("nuisance", [False, True])
@pytest.mark.parametrize("batches", [[[0, 1]], [[0], [1]]], ids=["all", "mini-batches"])
@pytest.mark.parametrize("reparameterised", [True, False])
@pytest.mark.parametrize("kind", list(PAIRS))
def test_mini_batches(kind, reparameterised, batches, nuisance):
    normal = dist.Normal if reparameterised else NonreparameterizedNormal
    count = 20_000
    model, guide = program(normal, len(batches[0]), nuisance)
    objective = PAIRS[kind][1](
        max_plate_nesting=1, num_particles=count, vectorize_particles=True, strict_enumeration_warning=False
    )
    found = gradients(objective, model, guide, [torch.tensor(rows) for rows in batches])
    # One particle's gradient has a standard deviation of at most 12 in any of these programs, nuisance sites included.
    for name, right in EXACT.items():
        assert (found[name] - right).abs().max() < 4 * 12 / count**0.5, (name, found[name])


@pytest.mark.parametrize("reparameterised", [True, False])
@pytest.mark.parametrize("size", [2, 1])
@pytest.mark.parametrize("kind", list(PAIRS))
def test_one_particle_is_pyros(kind, size, reparameterised):
    """Draw by draw, with mini-batches that are drawn, too."""
    model, guide = program(dist.Normal if reparameterised else NonreparameterizedNormal, size, False)
    right, found = (
        gradients(make(max_plate_nesting=1, strict_enumeration_warning=False), model, guide, [None] * 5)
        for make in PAIRS[kind]
    )
    for name, grad in right.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-4)


def outcome(objective, model, guide):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    try:
        objective.loss_and_grads(model, guide)
    except Exception:
        return None
    return {n: p.grad for n, p in pyro.get_param_store().named_parameters()}


CASES = [(n, PROGRAMS[n], k, 1) for n in PROGRAMS if n not in STRICTER for k in PAIRS]
CASES += [(n, ENUMERATED[n], "TraceEnum", k) for n in ENUMERATED for k in (1, 7)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "make", "kind", "count"), CASES)
def test_programs(name, make, kind, count):
    theirs, ours = PAIRS[kind]
    model, guide = make()
    options = {"max_plate_nesting": 2, "num_particles": count}
    right = outcome(theirs(**options), model, guide)
    found = outcome(ours(**options), model, guide)
    assert (found is None) == (right is None)
    for parameter, grad in (right or {}).items():
        if grad is None:
            assert found[parameter] is None
        else:
            torch.testing.assert_close(found[parameter], grad, rtol=1e-4, atol=1e-4)


def test_particle_plate_of_the_program():
    """A plate that the user puts around the particles: their sum is the gradient."""
    count = 20_000

    def model():
        with pyro.plate("particles", count, dim=-2), pyro.plate("data", 2, dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=X)

    def guide():
        loc, scale = pyro.param("loc", torch.zeros(2)), pyro.param("scale", torch.ones(1))
        with pyro.plate("particles", count, dim=-2), pyro.plate("data", 2, dim=-1):
            pyro.sample("z", dist.Normal(loc, scale))

    found = outcome(ELBO(analytic_kl=False), model, guide)
    for name, right in EXACT.items():
        assert (found[name] / count - right).abs().max() < 4 * 12 / count**0.5
