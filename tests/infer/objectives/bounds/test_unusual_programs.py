"""Programs that do something unusual: rows given to a plate, derivatives inside, branches on draws, no site at all."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

import pyro_dgm
from pyro_dgm.infer import ELBO, IWAE, OBJECTIVES, CapturedELBO, TraceGraphELBO

pytestmark = pytest.mark.uses_param_store
Y = torch.tensor([0.5, 1.0, 2.0])


def conjugate(y):
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def newton_guide(y):
    """One Newton step, which for this model ends in the posterior's mean."""
    width = pyro.param("width", torch.tensor(1.0), constraint=dist.constraints.positive)
    x = torch.zeros((), requires_grad=True)
    nll = 0.5 * (x / 3) ** 2 + 0.5 * ((y - x) ** 2).sum()
    (g,) = torch.autograd.grad(nll, x, create_graph=True)
    (h,) = torch.autograd.grad(g, x)
    pyro.sample("z", dist.Normal(x.detach() - g.detach() / h, width))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_guide_that_differentiates_inside(name):
    objective = OBJECTIVES[name](num_particles=max(1, OBJECTIVES[name].min_particles))
    if getattr(objective, "min_data", 0):
        with pytest.raises(ValueError, match="no plate contains every site|no plate at all"):
            objective.loss(conjugate, newton_guide, Y)
        return
    assert objective.bound(conjugate, newton_guide, Y).shape == ()
    assert not objective.bound(conjugate, newton_guide, Y).requires_grad
    SVI(conjugate, newton_guide, pyro.optim.Adam({"lr": 0.01}), objective).step(Y)


def test_the_bound_of_a_guide_that_differentiates_inside_is_right():
    exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 9.0).log_prob(Y).item()
    pyro.param("width", torch.tensor((3 + 1 / 9) ** -0.5), constraint=dist.constraints.positive)
    assert IWAE(3).bound(conjugate, newton_guide, Y).item() == pytest.approx(exact, abs=1e-4)
    captured = CapturedELBO(IWAE(3), backend="aten")
    assert captured.loss(conjugate, newton_guide, Y) == pytest.approx(-exact, abs=1e-4)
    run = pyro_dgm.fit((conjugate, newton_guide), Y, epochs=1, batch_size=3, progress=False, seed=0)
    assert run.history["train"][0] == pytest.approx(exact / 3, abs=0.3)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_no_site_at_all_is_a_loss_of_zero(name):
    objective = OBJECTIVES[name](num_particles=max(1, OBJECTIVES[name].min_particles))
    if getattr(objective, "min_data", 0) or name == "AdversarialELBO":
        with pytest.raises(ValueError, match=name):
            objective.loss(lambda: None, lambda: None)
        return

    def nothing():
        pass

    assert objective.loss(nothing, nothing) == 0
    assert objective.loss_and_grads(nothing, nothing) == 0
    assert objective.bound(nothing, nothing).item() == 0


def test_rows_that_a_model_is_given_must_be_the_guides_too():
    x, size = torch.linspace(-4, 4, 40), 40

    def model(rows, x):
        with pyro.plate("data", size, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    rows = torch.arange(10) * 3
    with pytest.raises(ValueError, match=r"plate 'data' its rows.*create_plates"):
        ELBO().loss(model, AutoNormal(model), rows, x[rows])
    guide = AutoNormal(model, create_plates=lambda rows, x: pyro.plate("data", size, subsample=rows))
    assert ELBO().bound(model, guide, rows, x[rows]).shape == (10,)

    def by_hand(rows, x):
        with pyro.plate("data", size, subsample=rows):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    exact = dist.Normal(0.0, 2**0.5).log_prob(x[rows])
    torch.testing.assert_close(IWAE(2).bound(model, by_hand, rows, x[rows]), exact)


@pytest.mark.parametrize("read", [lambda k: k == 1, lambda k: float(k), lambda k: k.item() > 0.5, lambda k: int(k)])
def test_a_branch_on_a_draw_is_charged_to_it(read):
    """The exact gradient of a guide with one switch, which the model's data depend on through Python alone."""
    x = torch.tensor(2.5)

    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(torch.tensor(2.0 if read(k) else -1.0), 1.0), obs=x)

    def guide(x):
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))

    logit = torch.zeros((), requires_grad=True)
    q = torch.sigmoid(logit)
    log_p = [dist.Normal(m, 1.0).log_prob(x) + torch.tensor(p).log() for m, p in ((-1.0, 0.6), (2.0, 0.4))]
    elbo = (1 - q) * (log_p[0] - torch.log1p(-q)) + q * (log_p[1] - q.log())
    (exact,) = torch.autograd.grad(elbo, logit)
    objective, found = TraceGraphELBO(), []
    pyro.param("logit", torch.tensor(0.0))
    for _ in range(400):
        pyro.param("logit").grad = None
        objective.loss_and_grads(model, guide, x)
        found.append(-pyro.param("logit").grad)
    found = torch.stack(found)
    assert (found.mean() - exact).abs() < 4 * found.std() / 20
    assert found.std() > 0.1  # the costs behind the branch are in it
