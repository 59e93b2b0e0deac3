"""CUBO against quadrature and enumeration: what is a bound, in which direction it is trained, and by whom."""

import functools
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer import CUBO, ELBO, IWAE, CapturedELBO, RenyiELBO
from pyro_dgm.models import LinearGaussian
from tests.infer.objectives.bounds.enumerated import (
    MODEL_PARAMETERS,
    Discrete,
    assert_mean,
    draws,
)
from tests.infer.objectives.bounds.exact import DTYPE, Toy, normal_log_prob
from tests.infer.objectives.bounds.test_exact import batches


def exact_cubo(toy, n):
    """log E w^n / n of each datum."""
    eps = torch.linspace(-9.5, 9.5, 1201, dtype=DTYPE)
    log_mass = torch.log_softmax(-0.5 * eps**2, 0)
    return torch.logsumexp(log_mass + n * toy.log_weight(eps), -1) / n


def self_normalised(n, prob, log_w, log_q, dim):
    """Value, and a scalar with the gradient, of the estimate from K particles along ``dim``; draws are held."""
    count = log_w.shape[dim]
    value = (prob * (torch.logsumexp(n * log_w, dim) - math.log(count)) / n).sum()
    weights = (n * log_w).softmax(dim) - 1 / count
    slope = (1 - n) / n * (prob * (weights.detach() * log_q).sum(dim)).sum()
    return value.detach(), slope


def wanted(value, slope, parameters, model_parameters):
    grads = torch.autograd.grad(slope, parameters[model_parameters:])
    return torch.cat([value[None], torch.zeros(model_parameters, dtype=DTYPE), torch.stack(grads)])


@pytest.mark.parametrize(
    ("n", "layout", "vectorize"),
    [(2.0, "flat", True), (1.5, "subsampled", True), (3.0, "nested", False), (2.0, "inner", True)],
)
def test_loss_and_mean_gradient_by_quadrature(n, layout, vectorize):
    """Two particles, quadrature over both."""
    torch.manual_seed(1)
    toy = Toy(layout)
    eps = torch.linspace(-6.5, 6.5, 131, dtype=DTYPE)
    mass = torch.softmax(-0.5 * eps**2, 0)
    loc = toy.a * toy.data.mean(-1, keepdim=True) + toy.c
    z = (loc + toy.log_t.exp() * eps).detach()
    log_w, log_q = toy.log_weight(eps).detach(), normal_log_prob(z, loc, toy.log_t.exp())
    log_w, log_q = (torch.stack(torch.broadcast_tensors(v[:, :, None], v[:, None]), -1) for v in (log_w, log_q))
    want = wanted(*self_normalised(n, mass[:, None] * mass, log_w, log_q, -1), list(toy.parameters()), 3)
    # `batches` divides by minus the replicates
    rows = -batches(toy, CUBO(2, n=n, vectorize_particles=vectorize), 100 if layout == "subsampled" else 60, 400)
    assert (rows[:, 1:4] == 0).all(), "the model must get no gradient at all"
    assert_mean(rows, want)


@pytest.mark.parametrize("vectorize", [True, False])
def test_bound_and_mean_gradient_against_enumeration(vectorize):
    torch.manual_seed(2)
    toy = Discrete()
    log_p, log_q = toy.terms()
    index = torch.tensor(list(itertools.product(range(4), repeat=3)))
    prob, log_w = log_q[index].sum(1).exp().detach(), (log_p - log_q)[index].detach()
    want = wanted(*self_normalised(2.0, prob, log_w, log_q[index], 1), list(toy.parameters()), MODEL_PARAMETERS)
    assert_mean(draws(toy, CUBO(3, n=2.0, vectorize_particles=vectorize), 60, 1000, sign=1), want)


@pytest.mark.parametrize("n", [1.5, 2.0])
def test_with_many_particles_it_is_the_gradient_of_the_bound(n):
    torch.manual_seed(3)
    toy = Toy("nested")
    exact = exact_cubo(toy, n).sum()
    gradient = torch.stack(torch.autograd.grad(exact, list(toy.parameters())))[3:]
    few, many = (-batches(toy, CUBO(k, n=n), 30, 4000 // k).mean(0) for k in (5, 1000))
    assert many[0] == pytest.approx(exact.item(), abs=0.02)
    assert (many[4:] - gradient).norm() < 0.05 * gradient.norm()
    assert (many[4:] - gradient).norm() < 0.3 * (few[4:] - gradient).norm()


def test_no_noise_where_the_guide_is_exact():
    m = LinearGaussian(3, 2, guide_covariance="full").double()
    m.set_guide_to_posterior()
    x = torch.randn(5, 3, dtype=DTYPE)
    objective = CUBO(num_particles=4)
    torch.testing.assert_close(objective.bound(m.model, m.guide, x), m.log_marginal(x).detach())
    objective(m.model, m.guide)(x).backward()
    assert max(p.grad.abs().max() for p in m.parameters()) < 1e-10


@pytest.mark.parametrize("n", [1.5, 2.0, 4.0])
def test_what_is_a_bound(n):
    """CUBO is an upper bound; its estimate is ELBO for one particle, rises with K, and passes log p(x) late."""
    toy = Toy("flat")
    with torch.no_grad():
        cubo, truth = exact_cubo(toy, n), toy.log_marginal()
        estimates = torch.stack([toy.bound(k, 1 - n) for k in (1, 2, 5, 20, 100, 2000)])
        torch.testing.assert_close(estimates[0], toy.bound(1))
    assert (cubo > truth).all()
    assert (estimates.diff(dim=0) > 0).all()
    assert (estimates < cubo).all()
    assert (estimates[0] < truth).all()
    assert (estimates[1] < truth).any()  # few particles are below: no upper bound
    assert (estimates[-1] > truth).all()
    objective = CUBO(num_particles=50, n=n)
    torch.manual_seed(4)
    values = torch.stack([objective.bound(toy.model, toy.guide).flatten() for _ in range(400)])
    with torch.no_grad():
        z = (values.mean(0) - toy.bound(50, 1 - n)) / (values.std(0) / 20)
    assert z.abs().max() < 4


def test_the_estimate_is_renyis_of_order_one_minus_n():
    toy = Toy("nested")
    values = []
    for objective in (CUBO(7, n=2.5), RenyiELBO(7, alpha=-1.5)):
        torch.manual_seed(5)
        values.append(objective.bound(toy.model, toy.guide))
    torch.testing.assert_close(*values)


def test_loss_is_plus_the_bound():
    toy = Toy("subsampled")
    toy.indices = torch.arange(10)
    objective, results = CUBO(num_particles=6), []
    for evaluate in (objective.bound, objective.loss, objective.differentiable_loss, objective.loss_and_grads):
        torch.manual_seed(6)
        results.append(evaluate(toy.model, toy.guide))
    total = 5.0 * results[0].sum().item()  # ten of fifty groups
    assert [float(torch.as_tensor(r).detach()) for r in results[1:]] == pytest.approx([total] * 3)
    assert objective.side == "upper"
    captured = CapturedELBO(objective, backend="aten")
    torch.manual_seed(6)
    assert captured.loss(toy.model, toy.guide) == pytest.approx(total)


def test_compared_with_its_own_sign():
    torch.manual_seed(8)
    m, x = LinearGaussian(3, 2).double(), torch.randn(6, 3, dtype=DTYPE)
    objectives = [CUBO(num_particles=2000), IWAE(10)]
    table = pyro_dgm.compare_elbos(m, x, objectives, num_replicates=10, seed=0)
    upper, lower = table[0], table[1]
    truth = m.log_marginal(x).mean().item()
    assert lower["bound"] < truth < upper["bound"]
    assert upper["gap"] == pytest.approx(truth - upper["bound"])
    values = torch.stack([objectives[0].bound(m.model, m.guide, x).mean() for _ in range(20)])
    assert abs(upper["bound"] - values.mean().item()) < 4 * math.hypot(upper["bound_se"], values.std().item() / 20**0.5)
    assert upper["snr_guide"] > 0
    assert upper["variance_model"] == 0


def test_fit_trains_the_guide_alone():
    torch.manual_seed(9)
    m, x = LinearGaussian(3, 2).double(), torch.randn(60, 3, dtype=DTYPE)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    objective = CUBO(num_particles=50)
    run = pyro_dgm.fit(m, x, objective=objective, optimizer=adam, epochs=30, batch_size=20, seed=0, progress=False)
    for name, p in m.named_parameters():
        assert torch.equal(p, before[name]) == (not name.startswith("guide")), name
    end = objective.bound(m.model, m.guide, x).mean().item()
    assert run.history["train"][-1] == pytest.approx(end, abs=0.05)  # the bound, as it is
    assert end == pytest.approx(m.log_marginal(x).mean().item(), abs=0.05)
    assert run.history["train"][0] > end + 0.05


def correlated():
    """A posterior of two correlated latents, and a guide of two independent ones."""
    precision = torch.tensor([[1.0, -0.8], [-0.8, 1.0]], dtype=DTYPE)
    posterior = dist.MultivariateNormal(torch.zeros(2, dtype=DTYPE), precision_matrix=precision)
    loc = torch.nn.Parameter(torch.full((2,), 0.4, dtype=DTYPE))
    log_scale = torch.nn.Parameter(torch.full((2,), -0.2, dtype=DTYPE))

    def model():
        pyro.sample("z", posterior)
        pyro.factor("evidence", torch.tensor(-1.5, dtype=DTYPE))

    def guide():
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, [loc, log_scale], posterior


def trained(objective, steps=400):
    torch.manual_seed(7)
    model, guide, parameters, _ = correlated()
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.loss_and_grads(model, guide)
        optimizer.step()
    return model, guide, [p.detach() for p in parameters]


def test_trained_by_it_a_guide_covers():
    """Independent guides of a correlated posterior: the ELBO's takes the conditional width, CUBO's a larger one."""
    _, _, (_, narrow) = trained(ELBO())
    model, guide, (loc, wide) = trained(CUBO(num_particles=100))
    assert narrow.exp().mean() == pytest.approx(1.0, rel=0.05)  # one over the root of the precision's diagonal
    assert loc.abs().max() < 0.15
    assert (wide.exp() > 1.25).all()
    # E w^2 of two Gaussians in closed form: the trained guide is near the minimum over widths
    precision = correlated()[3].precision_matrix

    def cubo(scale):
        q = torch.eye(2, dtype=DTYPE) / scale**2
        # log of the integral of p^2 / q, both normalised
        value = torch.logdet(precision) - 0.5 * torch.logdet(q) - 0.5 * torch.logdet(2 * precision - q)
        return -1.5 + 0.5 * value

    grid = torch.linspace(1.6, 4.0, 241, dtype=DTYPE)
    best = grid[torch.stack([cubo(s) for s in grid]).argmin()]
    assert wide.exp().mean() == pytest.approx(best.item(), rel=0.15)
    # and the two estimates bracket the evidence
    torch.manual_seed(8)
    upper = CUBO(num_particles=20_000).bound(model, guide)
    lower = IWAE(20).bound(model, guide)
    assert lower < -1.5 + 0.2
    assert -1.5 < upper < cubo(best) + 0.1


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_particles must be at least 2 for CUBO, got 1"):
        CUBO(num_particles=1)
    point = torch.nn.Parameter(torch.zeros(()))

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'z' .Delta."):
        CUBO()(model, lambda: pyro.sample("z", dist.Delta(point)))()


@pytest.mark.parametrize("n", [1.0, 0, -2, math.inf, math.nan, "two", True])
def test_orders_that_are_refused(n):
    with pytest.raises(ValueError, match="n must be a finite number above 1"):
        CUBO(n=n)
