"""MIWAE, CIWAE, PIWAE and VR-max: bounds and mean gradients against quadrature and enumeration; signal of gradients."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer import CIWAE, ELBO, IWAE, MIWAE, PIWAE, DReG, RenyiELBO
from tests.infer.objectives.bounds.enumerated import (
    MODEL_PARAMETERS,
    Discrete,
    assert_mean,
    draws,
    expectation,
    value_and_gradient,
)
from tests.infer.objectives.bounds.exact import DTYPE, Toy, normal_log_prob
from tests.infer.objectives.bounds.test_exact import LAYOUTS, _exact, batches

BETA = 0.3
VR_MAX = {"alpha": float("-inf")}


def expected_maximum(toy):
    """E max(log w_1, log w_2) of each datum, by quadrature over both."""
    eps = torch.linspace(-7.0, 7.0, 561, dtype=DTYPE)
    mass = torch.softmax(-0.5 * eps**2, 0)
    log_w = toy.log_weight(eps)
    rows = [(mass[:, None] * mass * torch.maximum(row[:, None], row)).sum() for row in log_w]
    return torch.stack(rows)


def by_quadrature(name, layout):
    """Exact objective, summed, and the gradient that each parameter is due, in one vector."""

    def bound(num_particles):
        value, gradient = _exact(layout, num_particles, 0.0)
        return torch.cat([value.sum()[None], gradient])

    if name == "MIWAE":
        return bound(5)
    if name == "PIWAE":
        return torch.cat([bound(15)[:4], bound(5)[4:]])  # the guide's parameters are the last three
    if name == "CIWAE":
        return BETA * bound(1) + (1 - BETA) * bound(5)
    toy = Toy(layout)
    return value_and_gradient(expected_maximum(toy), list(toy.parameters()))


def make(name, **kwargs):
    makers = {
        "MIWAE": lambda: MIWAE(num_outer=3, num_inner=5, **kwargs),
        "PIWAE": lambda: PIWAE(num_outer=3, num_inner=5, **kwargs),
        "CIWAE": lambda: CIWAE(5, beta=BETA, **kwargs),
        "VR-max": lambda: RenyiELBO(num_particles=2, **VR_MAX, **kwargs),
    }
    return makers[name]()


NAMES = ("MIWAE", "PIWAE", "CIWAE", "VR-max")


def with_guides_own(objective, guides, model_parameters, parameters):
    """Gradient of ``objective``, the guide's part replaced by that of its own."""
    want = value_and_gradient(objective, parameters)
    if guides is not None:
        want[1 + model_parameters :] = value_and_gradient(guides, parameters)[1 + model_parameters :]
    return want


@pytest.mark.parametrize(
    ("name", "layout"),
    # quadrature for the 50 data of "subsampled" takes long, and two of the four show what it is for
    [(n, x) for n in NAMES for x in LAYOUTS if x != "subsampled" or n in ("MIWAE", "CIWAE")],
)
def test_loss_and_mean_gradient_by_quadrature(name, layout):
    torch.manual_seed(12)
    toy = Toy(layout)
    vectorize = layout != "nested"
    want = by_quadrature(name, layout)
    count = 150 if layout == "subsampled" else 80
    rows = batches(toy, make(name, vectorize_particles=vectorize), count, 120)
    assert_mean(rows, want, informative=0.2)


def logmeanexp(x):
    return torch.logsumexp(x, 1) - math.log(x.shape[1])


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_score_function_gradients_against_enumeration(name, vectorize):
    torch.manual_seed(3)
    toy = Discrete()
    objectives = {
        "MIWAE": (
            MIWAE(num_outer=2, num_inner=2, vectorize_particles=vectorize),
            expectation(toy, 2, logmeanexp),
            None,
        ),
        "PIWAE": (
            PIWAE(num_outer=2, num_inner=2, vectorize_particles=vectorize),
            expectation(toy, 4, logmeanexp),
            expectation(toy, 2, logmeanexp),
        ),
        "CIWAE": (
            CIWAE(3, beta=BETA, vectorize_particles=vectorize),
            expectation(toy, 3, lambda w: BETA * w.mean(1) + (1 - BETA) * logmeanexp(w)),
            None,
        ),
        "VR-max": (
            RenyiELBO(num_particles=3, vectorize_particles=vectorize, **VR_MAX),
            expectation(toy, 3, lambda w: w.amax(1)),
            None,
        ),
    }
    objective, exact, guides = objectives[name]
    want = with_guides_own(exact, guides, MODEL_PARAMETERS, list(toy.parameters()))
    assert_mean(draws(toy, objective, 60), want)


class Mixed(torch.nn.Module):
    """A Bernoulli and, given it, a Gaussian latent a datum."""

    def __init__(self):
        super().__init__()
        self.x = torch.tensor([0.5, -1.0, 2.0], dtype=DTYPE)
        values = {"prior": 0.3, "gap": 1.2, "loc": 1.1, "qa": 0.6, "qb": -0.4, "qc": 0.5, "log_t": -0.6}
        for name, value in values.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value, dtype=DTYPE)))
        self.one = torch.ones((), dtype=DTYPE)

    def model(self):
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(logits=self.prior))
            z = pyro.sample("z", dist.Normal(self.gap * (2 * a - 1), self.one))
            pyro.sample("x", dist.Normal(self.loc * z, 0.7 * self.one), obs=self.x)

    def guide(self):
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(logits=self.qa * self.x))
            pyro.sample("z", dist.Normal(self.qb + self.qc * self.x + 0.3 * a, self.log_t.exp()))

    def bound_of_two(self, value):
        """E of ``value(log_w)`` over two particles, ``log_w`` ``(..., 2)``: quadrature over z, sums over a."""
        eps = torch.linspace(-6.5, 6.5, 131, dtype=DTYPE)
        mass = torch.softmax(-0.5 * eps**2, 0)
        total = []
        for x in self.x:
            log_w, prob = [], []
            for a in (0.0, 1.0):
                a = torch.tensor(a, dtype=DTYPE)
                z = self.qb + self.qc * x + 0.3 * a + self.log_t.exp() * eps
                log_qa = dist.Bernoulli(logits=self.qa * x).log_prob(a)
                log_q = log_qa + normal_log_prob(eps, 0.0, self.one) - self.log_t
                log_p = dist.Bernoulli(logits=self.prior).log_prob(a)
                log_p = log_p + normal_log_prob(z, self.gap * (2 * a - 1), self.one)
                log_w.append(log_p + normal_log_prob(x, self.loc * z, 0.7 * self.one) - log_q)
                prob.append(log_qa.exp() * mass)
            log_w, prob = torch.cat(log_w), torch.cat(prob)
            both = torch.stack(torch.broadcast_tensors(log_w[:, None], log_w), -1)
            total.append((prob[:, None] * prob * value(both)).sum())
        return torch.stack(total)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_guides_against_sums_and_quadrature(name, vectorize):
    """PIWAE sends the slopes of two dependent sites on, each once."""
    torch.manual_seed(4)
    toy = Mixed()

    def iwae(w):
        return torch.logsumexp(w, -1) - math.log(2)

    objectives = {
        "MIWAE": (MIWAE(num_outer=3, num_inner=2, vectorize_particles=vectorize), iwae, None),
        "PIWAE": (PIWAE(num_outer=2, num_inner=1, vectorize_particles=vectorize), iwae, lambda w: w.mean(-1)),
        "CIWAE": (
            CIWAE(2, beta=BETA, vectorize_particles=vectorize),
            lambda w: BETA * w.mean(-1) + (1 - BETA) * iwae(w),
            None,
        ),
        "VR-max": (RenyiELBO(num_particles=2, vectorize_particles=vectorize, **VR_MAX), lambda w: w.amax(-1), None),
    }
    objective, value, guides = objectives[name]
    guides = guides and toy.bound_of_two(guides)
    want = with_guides_own(toy.bound_of_two(value), guides, 3, list(toy.parameters()))
    assert_mean(draws(toy, objective, 60, replicates=300), want, informative=0.2)


class Chain(torch.nn.Module):
    """Two Gaussian latents, the second drawn around the first in the guide too."""

    def __init__(self):
        super().__init__()
        self.x = torch.tensor([0.5, -1.0, 2.0], dtype=DTYPE)
        for name, value in {"w": 0.8, "a": 0.4, "b": 0.5}.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value, dtype=DTYPE)))

    def model(self):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
            y = pyro.sample("y", dist.Normal(self.w * z, 0.8))
            pyro.sample("x", dist.Normal(y + 0.3 * z, 0.6), obs=self.x)

    def guide(self):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(self.a * self.x, 0.7))
            pyro.sample("y", dist.Normal(self.b * z + 0.2 * self.x, 0.5))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("toy", [Chain(), Mixed(), Toy("subsampled")], ids=["chain", "mixed", "subsampled"])
def test_piwae_draw_for_draw(toy, vectorize):
    """With the same draws: the model's gradient is IWAE's, the guide's MIWAE's; M = 1 is IWAE for both."""
    guide = {id(getattr(toy, n)) for n in ("qa", "qb", "qc", "log_t", "a", "b", "c") if hasattr(toy, n)}
    if isinstance(toy, Toy):
        guide.remove(id(toy.b))
    options = {"vectorize_particles": vectorize}

    def gradient(objective):
        objective.structure(toy.model, toy.guide, (), {})
        torch.manual_seed(5)
        loss = objective.differentiable_loss(toy.model, toy.guide)
        return loss.detach(), torch.autograd.grad(loss, list(toy.parameters()))

    loss, got = gradient(PIWAE(num_outer=3, num_inner=4, **options))
    iwae, models = gradient(IWAE(12, **options))
    _, guides = gradient(MIWAE(num_outer=3, num_inner=4, **options))
    torch.testing.assert_close(loss, iwae)
    for p, found, model, own in zip(toy.parameters(), got, models, guides, strict=True):
        torch.testing.assert_close(found, own if id(p) in guide else model)
    torch.testing.assert_close(gradient(PIWAE(num_outer=1, num_inner=6, **options)), gradient(IWAE(6, **options)))


def test_ends_of_the_families_are_known_objectives():
    toy = Mixed()

    def gradient(objective):
        objective.structure(toy.model, toy.guide, (), {})
        torch.manual_seed(6)
        loss = objective.differentiable_loss(toy.model, toy.guide)
        return [loss.detach(), *torch.autograd.grad(loss, list(toy.parameters()))]

    iwae = gradient(IWAE(6))
    for same in (MIWAE(num_outer=1, num_inner=6), PIWAE(num_outer=1, num_inner=6), CIWAE(6, beta=0.0)):
        torch.testing.assert_close(gradient(same), iwae)
    single = gradient(IWAE(1))
    for same in (MIWAE(num_outer=1, num_inner=1), CIWAE(1, beta=0.7), RenyiELBO(num_particles=1, **VR_MAX)):
        torch.testing.assert_close(gradient(same), single)
    # K = 1 in each of six bounds, or no share of the IWAE bound: each particle's own score, as RenyiELBO near order 1
    torch.testing.assert_close(gradient(MIWAE(num_outer=6, num_inner=1)), gradient(CIWAE(6, beta=1.0)))


def test_vr_max_is_the_limit_of_negative_orders():
    toy = Discrete()

    def bound(alpha):
        torch.manual_seed(7)
        return RenyiELBO(num_particles=8, alpha=alpha).bound(toy.model, toy.guide)

    top = bound(float("-inf"))
    gaps = [(bound(-(10.0**k)) - top).abs().max().item() for k in (1, 2, 3, 4)]
    assert gaps[3] < 1e-3 * max(gaps[0], 1.0)
    assert gaps == sorted(gaps, reverse=True)
    iwae = bound(0.0)
    assert (iwae <= top).all()
    assert (top <= iwae + math.log(8)).all()
    assert RenyiELBO(**VR_MAX).side is None
    assert RenyiELBO(alpha=-0.5).side is None
    assert RenyiELBO(alpha=0.5).side == "lower"
    assert "alpha=-inf" in repr(RenyiELBO(**VR_MAX))


def test_orders_that_are_refused():
    for alpha in (math.inf, math.nan):
        with pytest.raises(ValueError, match="alpha must be a finite number"):
            RenyiELBO(alpha=alpha)
    with pytest.raises(ValueError, match="alpha must not be 1"):
        RenyiELBO(alpha=1.0)


@pytest.mark.parametrize("cls", [MIWAE, PIWAE])
def test_how_particles_are_split(cls):
    def sizes(*args, **kwargs):
        objective = cls(*args, **kwargs)
        assert f"num_particles={objective.num_particles}" in repr(objective)
        assert objective.num_outer * objective.num_inner == objective.num_particles
        return objective.num_outer, objective.num_inner

    assert sizes() == (4, 4)
    assert sizes(num_outer=3, num_inner=5) == (3, 5)
    assert sizes(num_outer=3) == (3, 4)
    assert sizes(num_particles=64) == (8, 8)
    assert sizes(num_particles=12) == (3, 4)
    assert sizes(num_particles=7) == (1, 7)
    assert sizes(num_outer=2, num_particles=12) == (2, 6)
    assert sizes(num_inner=3, num_particles=12) == (4, 3)
    assert sizes(15, 2, num_outer=3) == (3, 5)  # max_plate_nesting comes next, as in all objectives
    with pytest.raises(ValueError, match="num_particles must be num_outer \\* num_inner, got num_particles=7"):
        cls(7, num_outer=2)
    with pytest.raises(ValueError, match="num_outer must be an integer of at least 1, or None, got 0"):
        cls(num_outer=0, num_inner=3)
    with pytest.raises(TypeError, match="num_inner must be an integer of at least 1, or None, got"):
        cls(num_outer=2, num_inner=1.5)
    with pytest.raises(ValueError, match="num_particles must be an integer of at least 1, got -1"):
        cls(num_particles=-1)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan"), "half", True])
def test_ciwae_refuses_other_shares(beta):
    with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\]"):
        CIWAE(beta=beta)


def test_piwae_refuses_guides_that_run_the_model():
    from pyro.infer.autoguide import AutoNormalMessenger

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with (
        pyro.settings.context(module_local_params=True),
        pytest.raises(TypeError, match="PIWAE evaluates the guide at given values"),
    ):
        PIWAE().loss(model, AutoNormalMessenger(model))


def signal_to_noise(make, num_particles, rows=1000):
    """|mean| / standard deviation of the guide's gradients (a, c, log_t), averaged."""
    toy = Toy("flat")
    found = batches_each(toy, make(num_particles), rows)[:, 3:]
    return (found.mean(0).abs() / found.std(0)).mean().item()


def batches_each(toy, objective, rows):
    """Gradients of independent replicates, one a row, from a few calls: the parameters are copied for each."""
    own = {n: p.detach().expand(rows, 1, 1).clone().requires_grad_() for n, p in toy.named_parameters()}
    kept = dict(toy.named_parameters())

    def repeated(fn):
        def run():
            with pyro.plate("replicates", rows, dim=-3):
                fn()

        return run

    for n in kept:
        delattr(toy, n)
        setattr(toy, n, own[n])
    loss = objective.differentiable_loss(repeated(toy.model), repeated(toy.guide))
    grads = torch.autograd.grad(loss, list(own.values()))
    return torch.stack([g.reshape(rows) for g in grads], 1)


def test_signal_of_the_guides_gradient():
    """Rainforth et al. and Tucker et al.: with K, IWAE's falls as 1/sqrt(K), DReG's rises as sqrt(K); MIWAE, CIWAE
    and PIWAE keep it above IWAE's of as many particles.
    """
    torch.manual_seed(8)
    sizes = (1, 10, 100)
    iwae = [signal_to_noise(IWAE, k, 2000) for k in sizes]
    dreg = [signal_to_noise(DReG, k, 2000) for k in sizes]
    assert iwae[0] > 2 * iwae[1] > 4 * iwae[2], iwae
    assert 1.3 * dreg[0] < dreg[1] < 0.5 * dreg[2], dreg
    others = {
        "MIWAE": signal_to_noise(lambda k: MIWAE(num_outer=10, num_inner=k // 10), 100, 2000),
        "PIWAE": signal_to_noise(lambda k: PIWAE(num_outer=10, num_inner=k // 10), 100, 2000),
        "CIWAE": signal_to_noise(lambda k: CIWAE(k, beta=0.5), 100, 2000),
    }
    assert min(others.values()) > 2 * iwae[2], (others, iwae)
    assert others["PIWAE"] == pytest.approx(others["MIWAE"], rel=0.15)


def test_piwae_trains_the_model_with_the_tighter_bound():
    """Its noise for the model is that of IWAE with all particles: smaller than MIWAE's."""
    torch.manual_seed(9)
    toy = Toy("flat")
    rows = {c: batches_each(Toy("flat"), c(10, 10), 2000)[:, :3] for c in (PIWAE, MIWAE)}
    exact = torch.stack(torch.autograd.grad(toy.log_marginal().sum(), [toy.w, toy.b, toy.log_s]))
    bias = {c: (r.mean(0) + exact).norm().item() for c, r in rows.items()}
    assert bias[PIWAE] < bias[MIWAE]


def test_elbo_is_the_ground_floor():
    """For each draw: mean of log-weights <= CIWAE <= IWAE, mean <= MIWAE <= IWAE of all, IWAE <= VR-max."""
    toy = Toy("flat")

    def bound(objective):
        torch.manual_seed(10)
        return objective.bound(toy.model, toy.guide)

    floor, roof = bound(ELBO(12, analytic_kl=False)), bound(IWAE(12))
    for between in (CIWAE(12, beta=BETA), MIWAE(num_outer=3, num_inner=4)):
        assert (floor < bound(between)).all()
        assert (bound(between) < roof).all()
    torch.testing.assert_close(bound(PIWAE(num_outer=3, num_inner=4)), roof)
