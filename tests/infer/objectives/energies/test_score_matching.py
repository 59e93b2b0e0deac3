"""Exact score matching: its loss by hand, what it recovers, and what it refuses."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

import pyro_dgm
from pyro_dgm.infer import NonFiniteLossError, ScoreMatching
from pyro_dgm.models import EBM
from tests.infer.objectives.energies.gaussian import F64, Program, Quadratic, minimise, relative_error, truth


def test_precision_of_a_gaussian_within_five_per_cent():
    mean, covariance, x = truth()
    program = Program(Quadratic(torch.eye(5, dtype=F64)))
    energy = minimise(ScoreMatching(), program, x)
    assert relative_error(energy.symmetric, torch.linalg.inv(covariance)) < 0.05
    torch.testing.assert_close(energy.symmetric, torch.linalg.inv(torch.cov(x.mT, correction=0)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.linalg.solve(energy.symmetric, energy.linear), x.mean(0), rtol=1e-4, atol=1e-4)
    assert (torch.linalg.solve(energy.symmetric, energy.linear) - mean).abs().max() < 0.05


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_and_gradient_by_hand(temperature):
    _, _, x = truth(3, 20)
    precision = torch.tensor([[2.0, 0.3, 0], [0.3, 1, 0.1], [0, 0.1, 0.5]], dtype=F64)
    program = Program(Quadratic(precision, torch.tensor([0.1, -0.2, 0.3], dtype=F64)), temperature)
    loss = ScoreMatching()(program.model, program.guide)(x)
    loss.backward()
    score = (program.energy.linear - x @ precision) / temperature
    expected = 0.5 * score.square().sum() - len(x) * precision.trace() / temperature
    torch.testing.assert_close(loss, expected)
    # d/db of the loss is the sum of the scores over T
    torch.testing.assert_close(program.energy.linear.grad, score.sum(0).detach() / temperature)


def test_base_counts_in_the_score():
    _, _, x = truth(3, 20)
    base = dist.Normal(torch.ones(3, dtype=F64), 2.0).to_event(1)
    program = Program(Quadratic(torch.eye(3, dtype=F64)), base=base)
    loss = ScoreMatching()(program.model, program.guide)(x)
    score = -x - (x - 1) / 4
    torch.testing.assert_close(loss, 0.5 * score.square().sum() - 20 * 3 * 1.25)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_trace_of_a_network_against_autograd(network):
    torch.manual_seed(0)
    shape = (4, 5)
    ebm = EBM(shape, network, hidden=(6, 7)).double()
    x = torch.randn(3, *shape, dtype=F64)
    log_prob = ebm.distribution().log_prob
    expected = 0.0
    for row in x:
        hessian = torch.func.hessian(lambda y: log_prob(y[None])[0])(row).reshape(20, 20)
        score = torch.func.grad(lambda y: log_prob(y[None])[0])(row)
        expected = expected + 0.5 * score.square().sum() + hessian.trace()
    for chunk_size in (None, 1, 7):
        module = ScoreMatching(chunk_size)(ebm.model, ebm.guide)
        torch.testing.assert_close(module(x), expected.detach())
        module(x).backward()
        assert any(p.grad.abs().max() > 0 for p in ebm.parameters())


def test_validation_and_subsampling():
    torch.manual_seed(0)
    ebm, x = EBM((2,), hidden=(8,)), torch.randn(30, 2)
    run = pyro_dgm.fit(ebm, x, objective=ScoreMatching(), epochs=30, validation=x, seed=0, progress=False)
    assert run.history["train"][-1] < run.history["train"][0]
    assert run.history["validation"][-1] == pytest.approx(ScoreMatching().loss(ebm.model, ebm.guide, x) / 30)
    law = ebm.distribution()

    def model(x, scale):
        with pyro.plate("data", 30 * scale, subsample=torch.arange(30)):
            pyro.sample("x", law, obs=x)

    losses = [ScoreMatching()(model, lambda *_: None)(x, scale) for scale in (1, 10)]
    torch.testing.assert_close(losses[1], 10 * losses[0])


def test_in_pyros_svi():
    torch.manual_seed(0)
    ebm, x = EBM((2,), hidden=(8,)), 0.5 * torch.randn(200, 2)
    svi = SVI(ebm.model, ebm.guide, pyro.optim.Adam({"lr": 0.01}), ScoreMatching())
    losses = [svi.step(x) for _ in range(100)]
    assert losses[-1] < losses[0]
    assert not pyro.get_param_store()


def test_bounded_supports_are_refused():
    def model(x):
        law = pyro_dgm.distributions.EnergyDistribution(
            lambda v: v.sum(-1), base=dist.Beta(torch.ones(2), 1.0).to_event(1)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    with pytest.raises(ValueError, match=r"ScoreMatching needs a density on all of R\^d, but site 'x' has support"):
        ScoreMatching()(model, lambda x: None)(torch.rand(3, 2))
    rbm = pyro_dgm.models.RBM(4, 2)
    with pytest.raises(ValueError, match=r"all of R\^d"):
        ScoreMatching()(rbm.model, rbm.guide)(torch.ones(3, 4))


def test_nonfinite_scores_are_named_with_the_site():
    ebm, x = EBM((2,), hidden=(8,)), torch.randn(6, 2)

    def poison(run):
        with torch.no_grad():
            ebm.energy.layers[0].weight[0, 0] = math.nan

    with pytest.raises(NonFiniteLossError, match="site 'x' is the first: its log-probability is not finite"):
        pyro_dgm.fit(ebm, x, objective=ScoreMatching(), epochs=3, callbacks=[poison], progress=False)
    with pytest.raises(ValueError, match="the energy at site 'x' is nan at 6 of 6 data"):
        ScoreMatching()(ebm.model, ebm.guide)(x)

    def model(x):  # an energy that is finite where its gradient is not
        law = pyro_dgm.distributions.EnergyDistribution(lambda v: v.abs().sqrt().sum(-1), (2,))
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    with pytest.raises(ValueError, match="the gradient of the energy at site 'x' is not finite at 6 of 6 data"):
        ScoreMatching()(model, lambda x: None)(torch.zeros(6, 2))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1, or None, got 0"):
        ScoreMatching(0)
