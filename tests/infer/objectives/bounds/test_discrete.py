"""Discrete and mixed latents, enumeration, masks and scales: against exact sums, and Pyro where it is right."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate

from pyro_dgm.infer import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    OBJECTIVES,
    PIWAE,
    STL,
    TVO,
    AdversarialELBO,
    DReG,
    FactorVAE,
    RenyiELBO,
    TraceGraphELBO,
)
from pyro_dgm.infer.objectives.evaluation.evaluate import evaluate
from tests.infer.objectives.bounds.exact import DTYPE, expected_renyi, normal_log_prob


class Discrete(torch.nn.Module):
    """Two dependent Bernoulli latents a datum, a Gaussian observation; everything enumerable."""

    def __init__(self):
        super().__init__()
        self.x = torch.tensor([0.5, -1.0, 2.0], dtype=DTYPE)
        values = {"prior": 0.3, "link": 0.8, "loc": 1.1, "log_s": 0.1, "qa": 0.2, "qb": -0.4, "qc": 0.5}
        for name, value in values.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value, dtype=DTYPE)))

    def model(self):
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(logits=self.prior))
            b = pyro.sample("b", dist.Bernoulli(logits=self.link * (2 * a - 1)))
            pyro.sample("x", dist.Normal(self.loc * (a + 2 * b - 1), self.log_s.exp()), obs=self.x)

    def guide(self):
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(logits=self.qa * self.x))
            pyro.sample("b", dist.Bernoulli(logits=self.qb + self.qc * a * self.x))

    def terms(self):
        """log p and log q of the four states, ``(4, 3)``."""
        log_p, log_q = [], []
        for a, b in itertools.product((0.0, 1.0), repeat=2):
            a, b = torch.full_like(self.x, a), torch.full_like(self.x, b)
            log_p.append(
                dist.Bernoulli(logits=self.prior).log_prob(a)
                + dist.Bernoulli(logits=self.link * (2 * a - 1)).log_prob(b)
                + normal_log_prob(self.x, self.loc * (a + 2 * b - 1), self.log_s.exp())
            )
            log_q.append(
                dist.Bernoulli(logits=self.qa * self.x).log_prob(a)
                + dist.Bernoulli(logits=self.qb + self.qc * a * self.x).log_prob(b)
            )
        return torch.stack(log_p), torch.stack(log_q)

    def bound(self, num_particles, alpha=0.0):
        log_p, log_q = self.terms()
        states = list(itertools.product(range(4), repeat=num_particles))
        index = torch.tensor(states)
        log_w = (log_p - log_q)[index] * (1 - alpha)  # (states, K, data)
        values = (torch.logsumexp(log_w, 1) - math.log(num_particles)) / (1 - alpha)
        return (log_q[index].sum(1).exp() * values).sum(0)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("objective", "num_particles", "alpha"),
    [
        (ELBO, 1, 0.0),
        (ELBO, 4, 0.0),
        (STL, 2, 0.0),
        (TraceGraphELBO, 2, 0.0),
        (IWAE, 1, 0.0),
        (IWAE, 3, 0.0),
        (RenyiELBO, 3, 0.4),
    ],
)
def test_score_function_gradients_against_enumeration(objective, num_particles, alpha, vectorize):
    toy = Discrete()
    options = {"alpha": alpha} if alpha else {}
    estimator = objective(num_particles=num_particles, vectorize_particles=vectorize, **options)
    parameters = list(toy.parameters())
    want_bound = toy.bound(num_particles if objective in (IWAE, RenyiELBO) else 1, alpha)
    want = torch.cat([want_bound.sum()[None].detach(), torch.stack(torch.autograd.grad(want_bound.sum(), parameters))])
    torch.manual_seed(0)

    def repeated(fn):
        def run():
            with pyro.plate("replicates", 200, dim=-2):
                fn()

        return run

    model, guide = repeated(toy.model), repeated(toy.guide)
    rows = []
    for _ in range(60):
        loss = estimator.differentiable_loss(model, guide)
        rows.append(torch.stack([loss.detach(), *torch.autograd.grad(loss, parameters)]) / -200)
    rows = torch.stack(rows)
    error = rows.std(0) / 60**0.5
    assert ((rows.mean(0) - want) / error.clamp(min=1e-9)).abs().max() < 4  # closed-form parts have no error
    assert error[1:].norm() < 0.15 * want[1:].norm()


def test_dreg_names_the_site_that_it_cannot_handle():
    toy = Discrete()
    with pytest.raises(ValueError, match="'a' .*Bernoulli.*IWAE"):
        DReG()(toy.model, toy.guide)()


@pytest.mark.parametrize("mark", ["parallel", "sequential"])
def test_enumerated_guide_is_exact(mark):
    toy = Discrete()
    guide = config_enumerate(toy.guide, default=mark)
    want = toy.bound(1)
    estimator = ELBO()
    loss = estimator.differentiable_loss(toy.model, guide)
    torch.testing.assert_close(-loss, want.sum())
    parameters = list(toy.parameters())
    got = torch.autograd.grad(-loss, parameters)
    torch.testing.assert_close(got, torch.autograd.grad(want.sum(), parameters))
    torch.testing.assert_close(estimator.bound(toy.model, guide), want.detach())
    assert estimator.loss(toy.model, guide) == pytest.approx(-want.sum().item())


def test_enumerated_model_is_the_marginal_density():
    """Sites that only the model has are summed out: every objective sees log p(x), here with no latent left."""
    toy = Discrete()
    model = config_enumerate(toy.model)

    def guide():
        pass

    log_p, _ = toy.terms()
    want = torch.logsumexp(log_p, 0)
    for estimator in (ELBO(), IWAE(3), IWAE(3, vectorize_particles=False), RenyiELBO(alpha=0.5)):
        torch.testing.assert_close(estimator.bound(model, guide), want.detach())
        loss = estimator.differentiable_loss(model, guide)
        torch.testing.assert_close(-loss, want.sum())
        got = torch.autograd.grad(-loss, [toy.loc, toy.prior])
        torch.testing.assert_close(got, torch.autograd.grad(want.sum(), [toy.loc, toy.prior], retain_graph=True))


def test_enumerated_model_beside_a_sampled_latent():
    """A mixture with a continuous latent in the guide: the weights hold the marginal over the component."""
    x = torch.tensor([0.3, -2.0], dtype=DTYPE)
    logits = torch.tensor([0.2, -0.3, 0.1], dtype=DTYPE)
    locs = torch.tensor([-1.0, 0.0, 2.0], dtype=DTYPE)

    @config_enumerate
    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
            y = pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(locs[y] + z, 0.5), obs=x)

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(0.3 * x, 0.9))

    def log_weight(eps):
        z = 0.3 * x[:, None] + 0.9 * eps
        half = torch.tensor(0.5, dtype=DTYPE)
        joint = [logits.log_softmax(0)[j] + normal_log_prob(x[:, None], locs[j] + z, half) for j in range(3)]
        lik = torch.logsumexp(torch.stack(joint), 0)
        one = torch.ones((), dtype=DTYPE)
        return lik + normal_log_prob(z, 0.0, one) - normal_log_prob(eps, 0.0, one) + math.log(0.9)

    for num_particles in (1, 6):
        want = expected_renyi(log_weight, num_particles)
        torch.manual_seed(2)
        draws = torch.stack([IWAE(num_particles).bound(model, guide) for _ in range(2000)])
        assert ((draws.mean(0) - want) / (draws.std(0) / 2000**0.5)).abs().max() < 4


@pytest.mark.parametrize(
    "cls",
    [ELBO, STL, IWAE, TraceGraphELBO, RenyiELBO, DReG, MIWAE, PIWAE, CIWAE, CUBO, TVO, FactorVAE, AdversarialELBO],
)
def test_masks_and_scales(cls):
    """Masked data contribute nothing; a scale shared by all observed sites multiplies the bound from outside."""
    x = torch.tensor([0.5, -1.0, 2.0], dtype=DTYPE)
    mask = torch.tensor([True, False, True])

    def model(n, mask=None):
        with pyro.plate("data", n):
            with poutine.mask(mask=mask) if mask is not None else poutine.block(hide_fn=lambda _: False):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x[:n])

    def guide(n, mask=None):
        with pyro.plate("data", n):
            with poutine.mask(mask=mask) if mask is not None else poutine.block(hide_fn=lambda _: False):
                pyro.sample("z", dist.Normal(0.8 * x[:n], 0.4))

    estimator = cls(num_particles=3)
    sign = 1 if estimator.side == "upper" else -1
    torch.manual_seed(0)
    masked = estimator.bound(model, guide, 3, mask)
    torch.manual_seed(0)
    plain = estimator.bound(model, guide, 3)
    torch.testing.assert_close(masked[mask], plain[mask])
    assert masked[1] == 0
    scaled = [poutine.scale(fn, scale=0.1) for fn in (model, guide)]
    torch.manual_seed(0)
    torch.testing.assert_close(estimator.bound(*scaled, 3), plain)
    torch.manual_seed(0)
    assert estimator.loss(*scaled, 3) == pytest.approx(sign * 0.1 * plain.sum().item())


@pytest.mark.parametrize("size", [4, 2], ids=["full", "subsampled"])
def test_scale_on_one_site_stays_inside(size):
    """Annealing a latent (poutine.scale around it in both) weights its terms, as Pyro does."""
    x = torch.arange(4, dtype=DTYPE)

    def model():
        with pyro.plate("data", 4, subsample_size=size) as i:
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[i])

    def guide():
        with pyro.plate("data", 4, subsample_size=size), poutine.scale(scale=0.3):
            pyro.sample("z", dist.Normal(torch.ones((), dtype=DTYPE), 0.4))

    losses = []
    for objective in (pyro.infer.TraceMeanField_ELBO(), ELBO(), ELBO(analytic_kl=False), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(objective.loss(model, guide))
    assert losses[1] == pytest.approx(losses[0])
    assert losses[2] == pytest.approx(losses[3])
    torch.manual_seed(0)
    assert -ELBO().bound(model, guide).sum().item() * 4 / size == pytest.approx(losses[0])


def test_joint_weights_with_a_global_latent():
    x = torch.tensor([0.5, -1.0, 2.0], dtype=DTYPE)

    def model(size=3):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        with pyro.plate("data", 3, subsample_size=size) as i:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[i])

    def guide(size=3):
        pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 0.7))

    particles = evaluate(model, guide, num_particles=5)
    assert particles.log_weights.shape == (5,)
    assert IWAE(5).bound(model, guide).shape == ()
    with pytest.warns(UserWarning, match="'x'.*not a bound|estimate, not a bound"):
        IWAE(5).bound(model, guide, 2)


def test_all_particles_see_one_minibatch():
    """One by one, Pyro draws new indices for each particle and mixes data in a weight; ours must not."""
    x = torch.arange(50, dtype=DTYPE)

    def model():
        with pyro.plate("data", 50, subsample_size=5) as i:
            z = pyro.sample("z", dist.Normal(x[i], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide():
        with pyro.plate("data", 50, subsample_size=5) as i:
            pyro.sample("z", dist.Normal(x[i], 1.0))

    particles = evaluate(model, guide, num_particles=4, vectorize=False)
    values = torch.stack([m.nodes["x"]["value"] for m, _ in particles.pairs])
    assert (values == values[0]).all()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (Trace_ELBO(), ELBO(analytic_kl=False)),
        (Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1), ELBO(4, analytic_kl=False)),
        (TraceEnum_ELBO(max_plate_nesting=1), ELBO(max_plate_nesting=1)),
    ],
)
def test_same_draws_same_gradient_as_pyro(theirs, ours):
    toy = Discrete()
    guide = config_enumerate(toy.guide) if isinstance(theirs, TraceEnum_ELBO) else toy.guide
    ours.structure(toy.model, guide, (), {})
    results = []
    for estimator in (theirs, ours):
        torch.manual_seed(5)
        loss = estimator.differentiable_loss(toy.model, guide)
        results.append((loss.detach(), torch.autograd.grad(loss, list(toy.parameters()))))
    torch.testing.assert_close(results[0], results[1])


def test_a_latent_without_guide_is_refused():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        pass

    for cls in OBJECTIVES.values():
        with pytest.raises(ValueError, match=r"model samples \['z'\] but the guide does not"):
            cls().loss(model, guide)
