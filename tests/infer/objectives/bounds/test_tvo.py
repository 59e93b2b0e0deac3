"""TVO: the K-sample bound and its gradient against enumeration and quadrature, and where it lies."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer import IWAE, TVO, ScoreFunction
from tests.infer.objectives.bounds.enumerated import Discrete, assert_mean, draws, expectation, value_and_gradient
from tests.infer.objectives.bounds.exact import DTYPE, Toy
from tests.infer.objectives.bounds.sbn import SigmoidBeliefNetwork
from tests.infer.objectives.bounds.sbn import draws as network_draws
from tests.infer.objectives.bounds.test_exact import batches


def rectangles(log_w, betas, dim):
    """The left Riemann sum of self-normalised averages, from its definition."""
    total = 0.0
    for left, right in zip(betas, betas[1:], strict=False):
        weights = torch.exp(left * log_w) / torch.exp(left * log_w).sum(dim, keepdim=True)
        total = total + (right - left) * (weights * log_w).sum(dim)
    return total


@pytest.mark.parametrize(
    ("objective", "vectorize"),
    [
        ({"num_partitions": 1, "num_particles": 2}, True),
        ({"num_partitions": 2, "num_particles": 2, "beta_1": 0.3}, True),
        ({"num_partitions": 5, "num_particles": 3}, True),
        ({"num_partitions": 3, "num_particles": 3, "schedule": "equal"}, False),
    ],
)
def test_bound_and_mean_gradient_against_enumeration(objective, vectorize):
    torch.manual_seed(1)
    toy = Discrete()
    objective = TVO(**objective, vectorize_particles=vectorize)
    exact = expectation(toy, objective.num_particles, lambda w: rectangles(w, objective.betas, 1))
    want = value_and_gradient(exact, list(toy.parameters()))
    assert_mean(draws(toy, objective, 60, 400), want)


@pytest.mark.parametrize("layout", ["flat", "subsampled", "nested", "inner"])
def test_reparameterised_guides_by_quadrature(layout):
    """Two particles, quadrature over both: the same without a pathwise gradient."""
    torch.manual_seed(2)
    toy, objective = Toy(layout), TVO(2, num_partitions=3, beta_1=0.3, vectorize_particles=layout != "inner")
    eps = torch.linspace(-6.5, 6.5, 131, dtype=DTYPE)
    mass = torch.softmax(-0.5 * eps**2, 0)
    log_w = toy.log_weight(eps)
    both = torch.stack(torch.broadcast_tensors(log_w[:, :, None], log_w[:, None]), -1)
    exact = (mass[:, None] * mass * rectangles(both, objective.betas, -1)).sum((-2, -1))
    want = value_and_gradient(exact, list(toy.parameters()))
    rows = batches(toy, objective, 150 if layout == "subsampled" else 80, 400)
    assert_mean(rows, want, informative=0.25)


def exact_tvo(net, betas):
    """The bound itself, under the exact path between guide and posterior (categorical network)."""
    states = torch.eye(8, dtype=DTYPE)[:, None]
    log_q = net.latent(net.x @ net.guide_weight + net.guide_bias).log_prob(states)
    log_w = net.latent(net.prior).log_prob(states) + net.observation(states).log_prob(net.x) - log_q
    total = 0.0
    for left, right in zip(betas, betas[1:], strict=False):
        path = (log_q + left * log_w).softmax(0)
        total = total + (right - left) * (path * log_w).sum()
    return total, (log_q + log_w).logsumexp(0).sum()


def test_with_many_particles_it_is_the_bound_of_the_paper():
    """Value and gradient tend to those of the sums over all states, as 1/K."""
    torch.manual_seed(3)
    net = SigmoidBeliefNetwork("onehot")
    objective = TVO(300, num_partitions=4, beta_1=0.3)
    exact, truth = exact_tvo(net, objective.betas)
    assert exact < truth
    grads = torch.autograd.grad(exact, list(net.parameters()))
    want = torch.cat([exact.detach()[None], *(g.flatten() for g in grads)])
    rows = network_draws(net, objective, 20, 10)
    assert (rows.mean(0) - want).norm() < 0.03 * want.norm()


def test_one_partition_is_the_elbo():
    """Draw for draw the score function with a leave-one-out baseline, value and gradient."""
    toy, results = Discrete(), []
    for objective in (TVO(6, num_partitions=1), ScoreFunction(6)):
        torch.manual_seed(4)
        objective.structure(toy.model, toy.guide, (), {})
        loss = objective.differentiable_loss(toy.model, toy.guide)
        results.append([loss.detach(), *torch.autograd.grad(loss, list(toy.parameters()))])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("toy", [Toy("nested"), Discrete()], ids=["gaussian", "discrete"])
def test_between_elbo_and_iwae_for_every_draw(toy):
    def bound(objective):
        torch.manual_seed(5)
        return objective.bound(toy.model, toy.guide)

    roof = bound(IWAE(7))
    equal = [bound(TVO(7, num_partitions=p, schedule="equal")) for p in (1, 2, 4, 8, 1000)]
    for loose, tight in zip(equal, equal[1:], strict=False):  # each cuts the rectangles of the one before in two
        assert (loose <= tight).all()
    assert (equal[-1] <= roof).all()
    torch.testing.assert_close(equal[-1], roof, atol=0.02, rtol=0)
    log = bound(TVO(7, num_partitions=5))
    assert (equal[0] <= log).all()
    assert (log <= roof).all()


def test_partitions():
    assert TVO(num_partitions=1).betas == (0.0, 1.0)
    assert TVO(num_partitions=2, beta_1=0.2).betas == (0.0, 0.2, 1.0)
    assert TVO(num_partitions=3, beta_1=0.04).betas == pytest.approx((0.0, 0.04, 0.2, 1.0))
    assert TVO(num_partitions=2, schedule="equal").betas == (0.0, 0.5, 1.0)
    assert repr(TVO(beta_1=0.2)) == "TVO(num_particles=10, beta_1=0.2)"


def test_one_weight_far_above_the_others():
    """Where one sample has all the weight the mean over the others is still a number."""
    x = torch.tensor([400.0], dtype=DTYPE)
    loc = torch.nn.Parameter(torch.zeros(1, dtype=DTYPE))

    def model():
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=DTYPE), 1.0))
            pyro.sample("x", dist.Normal(30 * z, 0.1), obs=x)

    def guide():
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Normal(loc, 2.0))

    torch.manual_seed(6)
    loss = TVO(4, num_partitions=5)(model, guide)()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(loc.grad).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TVO(num_partitions=0), ValueError, "num_partitions must be an integer of at least 1, got 0"),
        (lambda: TVO(num_partitions=2.0), TypeError, "num_partitions must be an integer of at least 1, got 2.0"),
        (lambda: TVO(schedule="cosine"), ValueError, "schedule must be 'log' or 'equal', got 'cosine'"),
        (lambda: TVO(beta_1=1.0), ValueError, "beta_1 must be between 0 and 1, got 1.0"),
        (lambda: TVO(num_particles=1), ValueError, "num_particles must be at least 2"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
