"""The situations that Pyro holds its own ELBOs to, with ours in their place, inside ``pyro.infer.SVI``.

Two data, one Gaussian latent each; the gradient of the negative ELBO by the guide's location is ``2 loc - x`` and by
its scale ``2 scale - 1 / scale``, summed over data.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import SVI

from pyro_dgm.infer import ELBO, NVIL, OBJECTIVES, STL, ScoreFunction, TraceEnumELBO, TraceGraphELBO, VarGrad

X = torch.tensor([-0.5, 2.0], dtype=torch.float64)
WANT = torch.tensor([0.5, -2.0, 2.0], dtype=torch.float64)
#: objectives whose bound is the ELBO itself, whatever the number of particles
AVERAGED = [ELBO, STL, TraceGraphELBO, TraceEnumELBO, ScoreFunction, VarGrad, NVIL]

averaged = pytest.mark.parametrize("cls", AVERAGED, ids=lambda cls: cls.__name__)
both_ways = pytest.mark.parametrize("normal", [dist.Normal, NonreparameterizedNormal], ids=["reparam", "nonreparam"])
pytestmark = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")


@pytest.fixture(autouse=True)
def empty_param_store():
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


def number(value):
    return torch.tensor(float(value), dtype=torch.float64)


def parameters():
    loc = pyro.param("loc", lambda: torch.zeros(2, dtype=torch.float64))
    return loc, pyro.param("scale", lambda: torch.ones(1, dtype=torch.float64))


def assert_mean_gradient(svi, count, divide=1.0, batches=(), error_at_most=0.06):
    """The mean over ``count`` evaluations, each summed over the batches given, within 4 standard errors."""
    rows = []
    for _ in range(count):
        for value in pyro.get_param_store()._params.values():
            value.grad = None
        for batch in batches or [()]:
            svi.loss_and_grads(svi.model, svi.guide, *batch)
        params = pyro.get_param_store()._params
        rows.append(torch.cat([params["loc"].grad, params["scale"].grad]) / divide)
    rows = torch.stack(rows)
    error = (rows.std(0) / count**0.5).clamp(min=1e-12)
    assert ((rows.mean(0) - WANT) / error).abs().max() < 4, (rows.mean(0), error)
    assert error.max() < error_at_most


def svi_of(model, guide, objective):
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), objective)


@averaged
@both_ways
@pytest.mark.parametrize("subsample", [False, True], ids=["full", "subsample"])
def test_given_subsample(cls, normal, subsample):
    size = 1 if subsample else 2

    def model(subsample):
        with pyro.plate("data", 2, size, subsample) as i:
            z = pyro.sample("z", normal(number(0), number(1)))
            pyro.sample("x", normal(z, number(1)), obs=X[i])

    def guide(subsample):
        loc, scale = parameters()
        with pyro.plate("data", 2, size, subsample) as i:
            pyro.sample("z", normal(loc[i], scale))

    svi = svi_of(model, guide, cls(num_particles=1000, max_plate_nesting=1, strict_enumeration_warning=False))
    batches = [(torch.tensor([0]),), (torch.tensor([1]),)] if subsample else [(torch.tensor([0, 1]),)]
    assert_mean_gradient(svi, 40, divide=2.0 if subsample else 1.0, batches=batches, error_at_most=0.08)


@averaged
@both_ways
@pytest.mark.parametrize("vectorised", [False, True], ids=["own plate", "vectorised"])
def test_nuisance_sites_in_another_order(cls, normal, vectorised):
    """Sites without a part in the answer, in one order in the model and in another in the guide."""
    replicates = 1 if vectorised else 10

    def model():
        repeat, data = pyro.plate("repeat", replicates, dim=-2), pyro.plate("data", 2, dim=-1)
        pyro.sample("a", normal(number(0), number(1)))
        with repeat, data:
            z = pyro.sample("z", normal(number(0), number(1)))
        pyro.sample("b", normal(number(2), number(3)))
        with data, repeat:
            pyro.sample("x", normal(z, number(1)), obs=X.expand(replicates, 2))
        pyro.sample("c", normal(number(4), number(5)))

    def guide():
        loc, scale = parameters()
        pyro.sample("c", normal(number(4), number(5)))
        with pyro.plate("repeat", replicates, dim=-2), pyro.plate("data", 2, dim=-1):
            pyro.sample("z", normal(loc, scale))
        pyro.sample("b", normal(number(2), number(3)))
        pyro.sample("a", normal(number(0), number(1)))

    # A global site makes one weight of all replicates, so that score functions' noise grows with their number.
    particles = 4000 if vectorised else 200
    svi = svi_of(model, guide, cls(num_particles=particles, strict_enumeration_warning=False))
    assert_mean_gradient(svi, 60, divide=replicates, error_at_most=0.3)


@averaged
@both_ways
@pytest.mark.parametrize("subsample", [False, True], ids=["full", "subsample"])
def test_particles_one_by_one_with_drawn_subsamples(cls, normal, subsample):
    size = 1 if subsample else 2

    def model():
        with pyro.plate("data", 2, size) as i:
            z = pyro.sample("z", normal(number(0), number(1)))
            pyro.sample("x", normal(z, number(1)), obs=X[i])

    def guide():
        loc, scale = parameters()
        with pyro.plate("data", 2, size) as i:
            pyro.sample("z", normal(loc[i], scale))

    objective = cls(num_particles=10, vectorize_particles=False, strict_enumeration_warning=False)
    assert_mean_gradient(svi_of(model, guide, objective), 60, error_at_most=1.0)


@pytest.mark.parametrize("cls", list(OBJECTIVES.values()), ids=list(OBJECTIVES))
@pytest.mark.parametrize(
    ("outer", "inner"), [((3, -1), (2, -2)), ((2, -2), (3, -1))], ids=["inner_outer", "outer_inner"]
)
def test_loss_is_the_loss_of_the_gradient_in_nested_plates(cls, outer, inner):
    data = torch.randn(2, 3)

    def model(data):
        with pyro.plate("outer", outer[0], dim=outer[1]):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", inner[0], dim=inner[1]):
                pyro.sample("y", dist.Normal(x, 1.0), obs=data)

    def guide(data):
        loc = pyro.param("loc", torch.tensor(1.0))
        with pyro.plate("outer", outer[0], dim=outer[1]):
            pyro.sample("x", dist.Normal(loc, 1.0))

    few = cls(num_particles=2, vectorize_particles=False)
    pyro.set_rng_seed(123)
    loss = few.loss(model, guide, data)
    pyro.set_rng_seed(123)
    assert few.loss_and_grads(model, guide, data) == pytest.approx(loss, rel=1e-5)
    many = cls(num_particles=10_000)
    tolerance = 0.15 if cls.side is not None else 1.0  # a penalty of weight 10 on a handful of data is noisy
    assert many.loss_and_grads(model, guide, data) == pytest.approx(many.loss(model, guide, data), abs=tolerance)
    assert torch.isfinite(pyro.get_param_store()._params["loc"].grad)
