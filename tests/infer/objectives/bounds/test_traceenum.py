"""TraceEnumELBO: its sums against exact enumeration, its draws against Pyro's class, its samples against quadrature."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormalMessenger

from pyro_dgm.infer import ELBO
from pyro_dgm.infer.objectives.bounds.traceenum import TraceEnumELBO
from tests.infer.objectives.bounds.exact import DTYPE, Toy
from tests.infer.objectives.bounds.test_discrete import Discrete


@pytest.mark.parametrize("mark", ["parallel", "sequential"])
def test_marked_guide_is_exact(mark):
    toy = Discrete()
    guide = config_enumerate(toy.guide, default=mark)
    parameters = list(toy.parameters())
    want, estimator = toy.bound(1), TraceEnumELBO()
    loss = estimator.differentiable_loss(toy.model, guide)
    torch.testing.assert_close(-loss, want.sum())
    got = torch.autograd.grad(-loss, parameters)
    torch.testing.assert_close(got, torch.autograd.grad(want.sum(), parameters))
    torch.testing.assert_close(estimator.bound(toy.model, guide), want.detach())


def test_marked_model_is_exact():
    toy = Discrete()
    model, estimator = config_enumerate(toy.model), TraceEnumELBO()
    want = torch.logsumexp(toy.terms()[0], 0)

    def guide():
        pass

    torch.testing.assert_close(estimator.bound(model, guide), want.detach())
    loss = estimator.differentiable_loss(model, guide)
    got = torch.autograd.grad(-loss, [toy.loc, toy.prior])
    torch.testing.assert_close(got, torch.autograd.grad(want.sum(), [toy.loc, toy.prior]))


def test_half_marked_guide_has_the_exact_mean():
    """One site summed, the other sampled: DiCE's gradient within 4 standard errors of the exact sum."""
    toy = Discrete()
    parameters = list(toy.parameters())

    def guide():
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(logits=toy.qa * toy.x), infer={"enumerate": "parallel"})
            pyro.sample("b", dist.Bernoulli(logits=toy.qb + toy.qc * a * toy.x))

    want_bound = toy.bound(1)
    want = torch.cat([want_bound.sum()[None].detach(), torch.stack(torch.autograd.grad(want_bound.sum(), parameters))])
    torch.manual_seed(0)
    rows = []
    estimator = TraceEnumELBO(num_particles=100)
    for _ in range(60):
        loss = estimator.differentiable_loss(toy.model, guide)
        rows.append(-torch.stack([loss.detach(), *torch.autograd.grad(loss, parameters)]))
    rows = torch.stack(rows)
    error = (rows.std(0) / 60**0.5).clamp(min=1e-9)  # what is summed has no error
    assert ((rows.mean(0) - want) / error).abs().max() < 4
    assert error[1:].norm() < 0.15 * want[1:].norm()


def test_an_event_of_mass_zero_and_infinite_cost_counts_nothing():
    """The guide excludes what the model excludes: 0 times minus infinity is no part of the mean, or of its gradient."""
    logit = torch.tensor(0.3, dtype=DTYPE, requires_grad=True)

    def guide():
        logits = torch.stack([logit, torch.zeros((), dtype=DTYPE), torch.tensor(-torch.inf, dtype=DTYPE)])
        pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    def model():
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.25, 0.25, 0.5], dtype=DTYPE)))
        pyro.factor("f", torch.tensor([1.0, 2.0, -torch.inf], dtype=DTYPE)[k])

    q = torch.sigmoid(logit)
    want = q * (1.0 - q.log()) + (1 - q) * (2.0 - (1 - q).log()) + torch.log(torch.tensor(0.25, dtype=DTYPE))
    loss = TraceEnumELBO().differentiable_loss(model, guide)
    torch.testing.assert_close(-loss, want)
    torch.testing.assert_close(torch.autograd.grad(-loss, logit), torch.autograd.grad(want, logit))


@pytest.mark.parametrize(("num_particles", "vectorize"), [(1, True), (4, True), (4, False)])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_same_draws_same_loss_and_gradient_as_pyro(num_particles, vectorize, marked):
    toy = Discrete()
    guide = config_enumerate(toy.guide) if marked else toy.guide
    ours = TraceEnumELBO(num_particles, vectorize_particles=vectorize)
    theirs = TraceEnum_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=vectorize and num_particles > 1)
    results = []
    for estimator in (theirs, ours):
        torch.manual_seed(5)
        loss = estimator.differentiable_loss(toy.model, guide)
        results.append((loss.detach(), torch.autograd.grad(loss, list(toy.parameters()))))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("layout", ["flat", "subsampled", "nested", "inner"])
@pytest.mark.parametrize("vectorize", [True, False])
def test_sampled_sites_against_quadrature(layout, vectorize):
    """Without a mark it is the plain Monte Carlo ELBO, per datum and unscaled, on any plates."""
    toy = Toy(layout)
    want = toy.bound(1)
    gradient = torch.stack(torch.autograd.grad(want.sum(), list(toy.parameters())))
    estimator = TraceEnumELBO(200 if vectorize else 2, vectorize_particles=vectorize)
    torch.manual_seed(0)
    count = 100 if vectorize else 200
    rows = []
    for _ in range(count):
        loss = estimator.differentiable_loss(toy.model, toy.guide)
        rows.append(-torch.stack([loss.detach(), *torch.autograd.grad(loss, list(toy.parameters()))]))
    rows = torch.stack(rows)
    z = (rows.mean(0) - torch.cat([want.detach().sum()[None], gradient])) / (rows.std(0) / count**0.5)
    assert z.abs().max() < 4
    toy.indices = torch.randperm(50)[:10] if layout == "subsampled" else None
    target = want.detach() if toy.indices is None else want.detach()[toy.indices]
    draws = torch.stack([estimator.bound(toy.model, toy.guide).reshape(-1) for _ in range(count)])
    assert ((draws.mean(0) - target) / (draws.std(0) / count**0.5)).abs().max() < 4.5


@pytest.mark.parametrize("cls", [ELBO, TraceEnumELBO])
def test_particles_one_by_one_see_one_minibatch(cls):
    x = torch.arange(50, dtype=DTYPE)

    @config_enumerate
    def guide():
        with pyro.plate("data", 50, subsample_size=5):
            pyro.sample("c", dist.Bernoulli(torch.tensor(0.5, dtype=DTYPE)))

    def model():
        with pyro.plate("data", 50, subsample_size=5) as i:
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5, dtype=DTYPE)))
            pyro.sample("x", dist.Normal(100.0 * x[i] + 0 * c, 1.0), obs=torch.zeros(5, dtype=DTYPE))

    bound = cls(num_particles=8, vectorize_particles=False).bound(model, guide)
    index = ((-2 * bound).clamp(min=0).sqrt() / 100).round()  # the bound of datum i is -(100 i)^2 / 2 - 0.92
    want = -0.5 * (100 * index) ** 2 - 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=DTYPE))
    torch.testing.assert_close(bound, want)


def test_messenger_guides_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with (
        pyro.settings.context(module_local_params=True),
        pytest.raises(TypeError, match="TraceEnumELBO cannot enumerate a GuideMessenger"),
    ):
        TraceEnumELBO().bound(model, AutoNormalMessenger(model), torch.zeros(2))
