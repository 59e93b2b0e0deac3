"""Guides and sites of every kind that Pyro has: messengers, baselines, sequential plates, marks that do not apply."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormalMessenger

from pyro_dgm.infer import ELBO, IWAE, STL, DReG, TraceGraphELBO
from tests.infer.objectives.bounds.test_discrete import Discrete


def normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_guide_messengers():
    x = torch.tensor([0.3, -1.0])
    with pyro.settings.context(module_local_params=True):
        guide = AutoNormalMessenger(normal_model)
        for objective in (ELBO(), IWAE(4), IWAE(4, vectorize_particles=False)):
            assert objective.bound(normal_model, guide, x).shape == (2,)
            objective.differentiable_loss(normal_model, guide, x).backward()
        for objective in (STL(), DReG()):
            with pytest.raises(TypeError, match=r"GuideMessenger.*use an ordinary guide, or ELBO or IWAE"):
                objective.bound(normal_model, guide, x)


def test_tracegraph_is_pyros_gradient_draw_for_draw():
    toy = Discrete()
    parameters = list(toy.parameters())
    ours = TraceGraphELBO(3, max_plate_nesting=1)
    theirs = TraceGraph_ELBO(3, max_plate_nesting=1, vectorize_particles=True)
    ours.structure(toy.model, toy.guide, (), {})
    torch.manual_seed(0)
    loss = ours.differentiable_loss(toy.model, toy.guide)
    got = torch.autograd.grad(loss, parameters)
    torch.manual_seed(0)
    want_loss = theirs.loss_and_grads(toy.model, toy.guide)
    assert loss.item() == pytest.approx(want_loss)
    torch.testing.assert_close(list(got), [p.grad for p in parameters])


def test_tracegraph_trains_a_baseline():
    baseline = torch.nn.Linear(1, 1).double()
    toy = Discrete()

    def guide():
        with pyro.plate("data", 3):
            options = {"nn_baseline": lambda v: baseline(v).squeeze(-1), "nn_baseline_input": toy.x[:, None]}
            a = pyro.sample("a", dist.Bernoulli(logits=toy.qa * toy.x), infer={"baseline": options})
            pyro.sample("b", dist.Bernoulli(logits=toy.qb + toy.qc * a * toy.x))

    TraceGraphELBO().differentiable_loss(toy.model, guide).backward()
    assert baseline.weight.grad.abs().sum() > 0
    assert toy.qa.grad is not None


def test_marks_that_an_objective_does_not_sum_are_said():
    toy = Discrete()
    guide = config_enumerate(toy.guide)
    with pytest.warns(UserWarning, match="IWAE samples .* marked for enumeration"):
        bound = IWAE(2).bound(toy.model, guide)
    assert bound.shape == (3,)
    with pytest.warns(UserWarning, match="TraceGraphELBO samples .* marked for enumeration"):
        assert TraceGraphELBO().bound(toy.model, guide).shape == (3,)


def test_sequential_plates():
    x = torch.tensor([0.5, -1.0, 2.0])

    def model(size=3):
        for i in pyro.plate("data", 3, subsample_size=size):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(size=3):
        for i in pyro.plate("data", 3, subsample_size=size):
            pyro.sample(f"z_{i}", dist.Normal(x[i] / 2, 0.5**0.5))

    truth = dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()
    for objective in (ELBO(analytic_kl=False), IWAE(3), STL(2), DReG(2)):
        assert objective.loss(model, guide) == pytest.approx(-truth, abs=1e-5)
    # The guide is exact, so a subsample's bound is its part of the truth, scaled from outside the logarithm.
    losses = [IWAE(3).loss(model, guide, 1) for _ in range(60)]
    terms = (-3 * dist.Normal(0.0, 2**0.5).log_prob(x)).tolist()
    assert all(min(abs(loss - t) for t in terms) < 1e-4 for loss in losses)
    assert len({round(loss, 3) for loss in losses}) == 3


def test_non_reparameterised_on_purpose():
    """``has_rsample_(False)`` asks for score-function gradients of a Gaussian site, as in Pyro."""
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    loc = torch.nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def model(n):
        with pyro.plate("replicates", n, dim=-2), pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(n):
        with pyro.plate("replicates", n, dim=-2), pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(loc, 0.6).has_rsample_(False))

    # d/dloc E[log p(x|z) - KL] = sum(x - loc) - 2 loc
    want = -(x - loc).sum().item() + 2 * loc.item()
    torch.manual_seed(0)
    for objective in (ELBO(), ELBO(analytic_kl=False), STL(), TraceGraphELBO(), IWAE(1)):
        grads = torch.stack([torch.autograd.grad(objective(model, guide)(1000) / 1000, loc)[0] for _ in range(40)])
        assert abs(grads.mean() - want) < 4 * grads.std() / 40**0.5
    with pytest.raises(ValueError, match="'z'"):
        DReG()(model, guide)(1)


def test_too_many_batch_dimensions_are_named():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0), obs=torch.zeros(3))

    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"log_prob at site 'x' has shape \(3,\)"):
        ELBO().loss(model, lambda: None)
    with pytest.raises(ValueError, match="plate|to_event"):
        ELBO().loss(model, lambda: None)


def test_scale_tensors_stay_with_their_site():
    x = torch.tensor([0.5, -1.0])
    beta = torch.tensor(0.5)
    torch.manual_seed(0)
    got = IWAE(4).loss(poutine.scale(normal_model, scale=beta), poutine.scale(lambda x: _guide(x), scale=beta), x)
    IWAE(4).structure(normal_model, _guide, (x,), {})
    torch.manual_seed(0)
    from pyro_dgm.infer.objectives.evaluation.evaluate import evaluate

    log_w = evaluate(normal_model, _guide, (x,), num_particles=4).log_weights
    want = -(torch.logsumexp(0.5 * log_w, 0) - torch.log(torch.tensor(4.0))).sum()
    assert got == pytest.approx(want.item(), rel=1e-5)


def _guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))
