"""Bounds and mean gradients of every objective against quadrature, within 4 standard errors."""

import functools
import re
from pathlib import Path

import pyro
import pytest
import torch

from pyro_dgm.infer import OBJECTIVES, RenyiELBO
from tests.infer.objectives.bounds.exact import Toy

ALPHA = 0.3
LAYOUTS = ("flat", "subsampled", "nested", "inner")


#: objectives whose bound and mean gradient have a quadrature here, over the whole grid
QUADRATURE = ("ELBO", "STL", "IWAE", "DReG", "RenyiELBO", "TraceGraphELBO")
#: the others, and the file that holds each against its own exact answer
ELSEWHERE = {
    "TraceEnumELBO": "test_traceenum.py",
    "ScoreFunction": "test_sbn.py",
    "VIMCO": "test_sbn.py",
    "NVIL": "test_sbn.py",
    "VarGrad": "test_sbn.py",
    "RELAX": "test_sbn.py",
    "REBAR": "test_sbn.py",
    "WakeSleep": "test_wake_sleep.py",
    "ReweightedWakeSleep": "test_wake_sleep.py",
    "MMDELBO": "test_penalties.py",
    "SlicedWasserstein": "test_penalties.py",
    "BetaTC": "test_penalties.py",
    "DIP": "test_penalties.py",
    "MIWAE": "test_multi_sample.py",
    "PIWAE": "test_multi_sample.py",
    "CIWAE": "test_multi_sample.py",
    "CUBO": "test_cubo.py",
    "TVO": "test_tvo.py",
    "FactorVAE": "test_discriminators.py",
    "AdversarialELBO": "test_discriminators.py",
}


def test_every_objective_has_an_exact_test():
    assert set(QUADRATURE) | set(ELSEWHERE) == set(OBJECTIVES)
    for name, file in ELSEWHERE.items():
        (path,) = Path(__file__).parents[1].rglob(file)
        assert re.search(rf"\b{name}\b", path.read_text())


def make(name, num_particles, **kwargs):
    if name == "RenyiELBO":
        return RenyiELBO(alpha=ALPHA, num_particles=num_particles, **kwargs)
    return OBJECTIVES[name](num_particles=num_particles, **kwargs)


def exact(toy, name, num_particles):
    """Exact per-datum bound, and the gradient of their sum in the order of ``toy.parameters()``."""
    averaged = name in ("ELBO", "STL", "TraceGraphELBO")
    return _exact(toy.layout, 1 if averaged else num_particles, ALPHA if name == "RenyiELBO" else 0.0)


@functools.cache
def _exact(layout, num_particles, alpha):
    toy = Toy(layout)
    bound = toy.bound(num_particles, alpha)
    return bound.detach(), torch.stack(torch.autograd.grad(bound.sum(), list(toy.parameters())))


def batches(toy, objective, count, replicates):
    """Gradient and value of the total bound, one row a batch of independent replicates (an outermost plate)."""

    def repeated(fn):
        def run():
            with pyro.plate("replicates", replicates, dim=-3):
                fn()

        return run

    model, guide = repeated(toy.model), repeated(toy.guide)
    rows = []
    for _ in range(count):
        loss = objective.differentiable_loss(model, guide)
        grads = torch.autograd.grad(loss, list(toy.parameters()))
        rows.append(torch.stack([loss.detach(), *grads]) / -replicates)
    return torch.stack(rows)


def grid():
    for name in QUADRATURE:
        for num_particles in (1, 5, 50):
            for layout in LAYOUTS:
                for vectorize in (True, False):
                    # 50 runs a step, one by one, say nothing about the plates that 5 do not: the slow set has them all
                    slow = num_particles == 50 and not vectorize and layout != "nested"
                    label = f"{name}-{num_particles}-{layout}-{'vectorised' if vectorize else 'one by one'}"
                    marks = [pytest.mark.slow] if slow else []
                    yield pytest.param(name, num_particles, layout, vectorize, id=label, marks=marks)


@pytest.mark.parametrize(("name", "num_particles", "layout", "vectorize"), list(grid()))
def test_loss_and_mean_gradient_are_exact(name, num_particles, layout, vectorize):
    torch.manual_seed(num_particles)
    toy = Toy(layout)
    objective = make(name, num_particles, vectorize_particles=vectorize)
    count, replicates = (120 if layout == "subsampled" else 60 if vectorize else 30), 60
    rows = batches(toy, objective, count, replicates)
    bound, gradient = exact(toy, name, num_particles)
    want = torch.cat([bound.sum()[None], gradient])
    error = rows.std(0) / count**0.5
    z = (rows.mean(0) - want) / error.clamp(min=1e-9)
    assert z.abs().max() < 4, f"z scores {z.tolist()} of loss and gradients {list(dict(toy.named_parameters()))}"
    # The test must be able to fail: the error has to be small beside what is measured.
    assert error[0] < 0.1 * want[0].abs()
    assert error[1:].norm() < 0.2 * gradient.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", QUADRATURE)
def test_bound_is_per_datum_and_unscaled(name, layout):
    torch.manual_seed(1)
    toy = Toy(layout)
    objective = make(name, 5)
    draws = []
    for _ in range(400):
        if layout == "subsampled":
            toy.indices = torch.randperm(50)[:10]
            per_datum = torch.full((50,), torch.nan, dtype=torch.float64)
            per_datum[toy.indices] = objective.bound(toy.model, toy.guide).reshape(-1)
            draws.append(per_datum)
        else:
            draws.append(objective.bound(toy.model, toy.guide).reshape(-1))
    draws = torch.stack(draws)
    seen = (~draws.isnan()).sum(0)
    mean = draws.nanmean(0)
    error = ((draws - mean) ** 2).nanmean(0).sqrt() / seen.sqrt()
    want, _ = exact(toy, name, 5)
    assert seen.min() > 40
    assert ((mean - want) / error).abs().max() < 4.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_iwae_rises_with_k_and_stays_below_the_truth(layout):
    toy = Toy(layout)
    with torch.no_grad():
        exact_bounds = [toy.bound(k).sum().item() for k in (1, 2, 5, 50)]
        truth = toy.log_marginal().sum().item()
    assert exact_bounds == sorted(exact_bounds)
    assert exact_bounds[-1] < truth
    torch.manual_seed(3)
    means = []
    for k, bound in zip((1, 2, 5, 50), exact_bounds, strict=True):
        values = -batches(toy, make("IWAE", k), 30, 50)[:, 0]
        mean, error = -values.mean().item(), values.std().item() / 30**0.5
        assert abs(mean - bound) < 4 * error
        assert mean < truth + 4 * error
        means.append(mean)
    assert means == sorted(means)


def test_subsampling_scale_outside_the_log_where_pyros_is_inside():
    """Pyro's RenyiELBO scales inside the logarithm: its "bound" then lies far above the truth."""
    toy = Toy("subsampled")
    with torch.no_grad():
        truth = toy.log_marginal().sum().item()
    torch.manual_seed(0)
    pyros = pyro.infer.RenyiELBO(alpha=0, num_particles=50, vectorize_particles=True, max_plate_nesting=2)
    theirs = torch.tensor([-pyros.loss(toy.model, toy.guide) for _ in range(400)])
    ours = torch.tensor([-make("IWAE", 50).loss(toy.model, toy.guide) for _ in range(400)])
    theirs_error, ours_error = theirs.std() / 20, ours.std() / 20
    assert theirs.mean() - 4 * theirs_error > truth
    assert ours.mean() - 4 * ours_error < truth


def test_quadrature_agrees_with_plain_monte_carlo():
    """The reference itself: 10^6 draws of the bound's definition."""
    toy = Toy("flat")
    torch.manual_seed(0)
    with torch.no_grad():
        log_w = torch.stack([toy.log_weight(torch.randn(200_000, dtype=torch.float64)) for _ in range(5)])
        values = torch.logsumexp(log_w, 0) - torch.log(torch.tensor(5.0))
        error = values.std(-1) / 200_000**0.5
        assert ((values.mean(-1) - toy.bound(5)) / error).abs().max() < 4
        assert (toy.bound(4000) - toy.log_marginal()).abs().max() < 1e-2
