"""Programs that run only with the dimensions that the objective adds: particles, and values of marked sites.

Pyro runs a program in no other way where ``max_plate_nesting`` is given, so such programs are valid.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate

from pyro_dgm.infer import ELBO, CapturedELBO, TraceEnumELBO, TraceGraphELBO

pytestmark = pytest.mark.uses_param_store
PARTICLES = 5
X = torch.tensor([0.3, -0.4, 1.0])
OBJECTIVES = {
    "Trace": (Trace_ELBO, lambda **options: ELBO(analytic_kl=False, **options)),
    "TraceGraph": (TraceGraph_ELBO, TraceGraphELBO),
    "TraceEnum": (TraceEnum_ELBO, TraceEnumELBO),
}


def weight():
    return pyro.param("w", torch.tensor(0.4))


def asserting(nesting, left=(2,)):
    """A marked site of the guide whose shape both sides assert."""

    def model():
        x = pyro.sample("x", dist.Bernoulli(0.3))
        assert x.shape == left + (1,) * nesting

    @config_enumerate
    def guide():
        x = pyro.sample("x", dist.Bernoulli(weight()))
        assert x.shape == left + (1,) * nesting

    return model, guide


def squeezing():
    """A model that takes the value of a marked site out of its dimension."""

    @config_enumerate
    def model():
        with pyro.plate("a", 3):
            c = pyro.sample("c", dist.Categorical(torch.stack([weight(), 1 - weight()])))
            locs = torch.arange(2.0)[c.squeeze(-2)[:, 0] if c.dim() > 2 else c[:, 0]].unsqueeze(-1)
            pyro.sample("x", dist.Normal(locs, 1.0), obs=X)

    return model, lambda: None


def summed_on_both_sides():
    marked = {"enumerate": "parallel"}

    def model():
        a = pyro.sample("a", dist.Bernoulli(weight()))
        b = pyro.sample("b", dist.Bernoulli(0.2 + a / 2), infer=marked)
        pyro.sample("x", dist.Bernoulli(0.2 + b / 2), obs=torch.tensor(1.0))
        assert a.shape == (2,)
        assert b.shape == (2, 1)

    def guide():
        assert pyro.sample("a", dist.Bernoulli(weight()), infer=marked).shape == (2,)

    return model, guide


ENUMERATED = {
    "no plate": (*asserting(0), 0),
    "one plate": (*asserting(1), 1),
    "two plates": (*asserting(2), 2),
    "squeezed": (*squeezing(), 1),
    "both sides": (*summed_on_both_sides(), 0),
}


def normal_model():
    with pyro.plate("a", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        assert z.shape == (PARTICLES, 3)
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def normal_guide():
    with pyro.plate("a", 3):
        pyro.sample("z", dist.Normal(weight(), 1.0))


def evaluated(objective, model, guide):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    loss = objective.loss_and_grads(model, guide)
    return loss, dict(pyro.get_param_store().named_parameters())["w"].grad


@pytest.mark.parametrize("ours", [TraceEnumELBO, ELBO, lambda **o: CapturedELBO(TraceEnumELBO(**o), backend="aten")])
@pytest.mark.parametrize("name", list(ENUMERATED))
def test_enumerated(name, ours):
    model, guide, nesting = ENUMERATED[name]
    right, right_grad = evaluated(TraceEnum_ELBO(max_plate_nesting=nesting), model, guide)
    found, grad = evaluated(ours(max_plate_nesting=nesting), model, guide)
    assert found == pytest.approx(right, abs=1e-5)
    torch.testing.assert_close(grad, right_grad)


@pytest.mark.parametrize("name", list(ENUMERATED))
def test_bound_of_enumerated(name):
    model, guide, nesting = ENUMERATED[name]
    elbo = TraceEnumELBO(max_plate_nesting=nesting)
    pyro.clear_param_store()
    assert float(elbo.bound(model, guide).sum()) == pytest.approx(-elbo.loss(model, guide), abs=1e-5)


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_particles(kind):
    options = {
        "num_particles": PARTICLES,
        "vectorize_particles": True,
        "max_plate_nesting": 1,
        "strict_enumeration_warning": False,
    }
    theirs, ours = OBJECTIVES[kind]
    right, right_grad = evaluated(theirs(**options), normal_model, normal_guide)
    found, grad = evaluated(ours(**options), normal_model, normal_guide)
    assert found == pytest.approx(right, abs=1e-4)
    torch.testing.assert_close(grad, right_grad)


def test_closed_forms_that_cannot_be_compared_are_not_used():
    """``ELBO`` on its defaults gives the sampled terms too: no single run is there to compare a closed form with."""
    options = {"num_particles": PARTICLES, "vectorize_particles": True, "max_plate_nesting": 1}
    right, _ = evaluated(Trace_ELBO(**options), normal_model, normal_guide)
    found, _ = evaluated(ELBO(**options), normal_model, normal_guide)
    assert found == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("nesting", [0, 1, float("inf")])
def test_a_program_that_does_not_run_says_its_own_error(nesting):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        raise RuntimeError("the author's own")

    with pytest.raises(RuntimeError, match="the author's own"):
        TraceEnumELBO(max_plate_nesting=nesting).loss(model, lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))


def test_rows_that_the_guide_lacks_are_refused_all_the_same():
    def model():
        with pyro.plate("a", 4, subsample=torch.tensor([0, 1])):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        with pyro.plate("a", 4, subsample=torch.tensor([2, 3])):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="draws rows of its own"):
        ELBO(max_plate_nesting=1).loss(model, guide)
