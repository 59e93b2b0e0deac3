"""beta, free_bits and capacity of ELBO: gradients of what is trained, value of what is reported, step after step."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal

import pyro_dgm
from pyro_dgm.infer import ELBO, CapturedELBO, TraceEnumELBO
from pyro_dgm.models import VAE, LinearGaussian
from pyro_dgm.ops import CyclicalSchedule, LinearSchedule
from tests.infer.objectives.bounds.enumerated import Discrete, assert_mean, draws
from tests.infer.objectives.bounds.exact import DTYPE, Toy, normal_log_prob
from tests.infer.objectives.bounds.test_exact import batches

OPTIONS = [
    {"beta": 0.3},
    {"beta": 4.0},
    {"free_bits": 0.9},
    {"free_bits": 0.9, "beta": 2.0},
    {"capacity": 0.7, "beta": 3.0},
]


def penalty(divergences, beta=1.0, free_bits=0.0, capacity=None):
    """From the definition."""
    if free_bits:
        return beta * sum(torch.maximum(kl, torch.tensor(free_bits, dtype=DTYPE)) for kl in divergences)
    total = sum(divergences)
    return beta * ((total - capacity).abs() if capacity is not None else total)


def gaussian_parts(toy, eps):
    """Reconstruction and Monte Carlo KL of each datum, ``(data, n)``, and the KL in closed form, ``(data,)``."""
    x, one = toy.data, torch.ones((), dtype=DTYPE)
    loc, scale = toy.a * x.mean(-1) + toy.c, toy.log_t.exp()
    z = loc[:, None] + scale * eps
    rest = normal_log_prob(x[..., None], toy.w * z[:, None] + toy.b, toy.log_s.exp()).sum(1)
    sampled = normal_log_prob(eps, 0.0, one) - toy.log_t - normal_log_prob(z, 0.0, one)
    return rest, sampled, 0.5 * (loc**2 + scale**2 - 1) - toy.log_t


def gradient_of(total, value, parameters):
    return torch.stack([value.sum().detach(), *torch.autograd.grad(total.sum(), parameters, materialize_grads=True)])


@pytest.mark.parametrize("layout", ["flat", "subsampled", "nested"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_closed_form_divergences(options, layout):
    """The value is the ELBO, the gradient that of what is trained, which has no noise in the KL."""
    torch.manual_seed(1)
    toy, eps = Toy(layout), torch.linspace(-9.5, 9.5, 1201, dtype=DTYPE)
    mass = torch.softmax(-0.5 * eps**2, 0)
    rest, _, kl = gaussian_parts(toy, eps)
    rest = (mass * rest).sum(-1)
    if layout == "nested" and "free_bits" in options:
        options = {**options, "free_bits": 0.25}
    if "free_bits" in options:
        assert 0 < (kl > options["free_bits"]).sum() < len(kl), "the test must see both sides"
    want = gradient_of(rest - penalty([kl], **options), rest - kl, list(toy.parameters()))
    objective = ELBO(num_particles=2, vectorize_particles=layout != "nested", **options)
    rows = batches(toy, objective, 100 if layout == "subsampled" else 40, 60)
    assert_mean(rows, want, informative=0.3)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_monte_carlo_divergences(options):
    """Two particles: their mean divergence is what is held against the free bits, by quadrature over both."""
    torch.manual_seed(12)
    toy, eps = Toy("flat"), torch.linspace(-7.0, 7.0, 561, dtype=DTYPE)
    mass = torch.softmax(-0.5 * eps**2, 0)
    rest, sampled, kl = gaussian_parts(toy, eps)
    pair = 0.5 * (sampled[:, :, None] + sampled[:, None])
    rest, expected = (mass * rest).sum(-1), (mass[:, None] * mass * penalty([pair], **options)).sum((-2, -1))
    want = gradient_of(rest - expected, rest - kl, list(toy.parameters()))
    rows = batches(toy, ELBO(num_particles=2, analytic_kl=False, **options), 60, 200)
    assert_mean(rows, want, informative=0.3)


def discrete_parts(toy, analytic):
    """For the four states: reconstruction, and the divergences of both sites, ``(4, data)``."""
    rest, first, second = [], [], []
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        a, b = torch.full_like(toy.x, a), torch.full_like(toy.x, b)
        pairs = [
            (dist.Bernoulli(logits=toy.qa * toy.x), dist.Bernoulli(logits=toy.prior.expand(3))),
            (dist.Bernoulli(logits=toy.qb + toy.qc * a * toy.x), dist.Bernoulli(logits=toy.link * (2 * a - 1))),
        ]
        kls = [
            torch.distributions.kl_divergence(q, p) if analytic else q.log_prob(v) - p.log_prob(v)
            for (q, p), v in zip(pairs, (a, b), strict=True)
        ]
        rest.append(normal_log_prob(toy.x, toy.loc * (a + 2 * b - 1), toy.log_s.exp()))
        first.append(kls[0])
        second.append(kls[1])
    return torch.stack(rest), torch.stack(first), torch.stack(second)


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize(
    ("options", "num_particles", "vectorize"),
    [
        ({"beta": 0.3}, 1, True),
        ({"beta": 3.0}, 2, False),
        ({"free_bits": 0.05, "beta": 2.0}, 2, True),
        ({"free_bits": 0.05}, 2, False),
        ({"capacity": 0.2, "beta": 1.5}, 2, True),
    ],
    ids=str,
)
def test_score_functions_against_enumeration(options, num_particles, vectorize, analytic):
    """Two Bernoulli sites, the second's divergence a function of the first."""
    torch.manual_seed(3)
    toy = Discrete()
    rest, first, second = discrete_parts(toy, analytic)
    _, log_q = toy.terms()
    index = torch.tensor(list(itertools.product(range(4), repeat=num_particles)))
    prob = log_q[index].sum(1).exp()
    kls = [first[index].mean(1), second[index].mean(1)]
    total = (prob * (rest[index].mean(1) - penalty(kls, **options))).sum(0)
    elbo = (prob * (rest[index].mean(1) - sum(kls))).sum(0)
    want = gradient_of(total, elbo, list(toy.parameters()))
    objective = ELBO(num_particles, analytic_kl=analytic, vectorize_particles=vectorize, **options)
    assert_mean(draws(toy, objective, 60, 1000 if vectorize else 500), want)
    torch.manual_seed(4)
    values = torch.stack([objective.regularised(toy.model, toy.guide) for _ in range(1000)])
    z = (values.mean(0) - total.detach()) / (values.std(0) / 1000**0.5)
    assert z.abs().max() < 4


@pytest.mark.parametrize("vectorize", [True, False])
def test_what_is_reported_is_the_elbo(vectorize):
    toy = Toy("subsampled")
    toy.indices = torch.arange(10)
    plain = ELBO(3, vectorize_particles=vectorize)
    for options in [*OPTIONS, {"beta": LinearSchedule(10)}]:
        objective = ELBO(3, vectorize_particles=vectorize, **options)
        assert objective.side == "lower"
        for method in ("bound", "loss", "differentiable_loss"):
            found = []
            for o in (objective, plain):
                o.structure(toy.model, toy.guide, (), {})
                torch.manual_seed(5)
                found.append(torch.as_tensor(getattr(o, method)(toy.model, toy.guide)).detach())
            torch.testing.assert_close(*found)


def test_regularised_is_what_its_name_says():
    toy = Toy("nested")
    for options in OPTIONS:
        objective = ELBO(4, **options)
        torch.manual_seed(6)
        bound = objective.bound(toy.model, toy.guide).flatten()
        torch.manual_seed(6)
        found = objective.regularised(toy.model, toy.guide).flatten()
        kl = gaussian_parts(toy, torch.zeros(1, dtype=DTYPE))[2].detach()
        torch.testing.assert_close(found, bound + kl - penalty([kl], **options))


def gradient(objective, program, *args):
    objective.structure(program.model, program.guide, args, {})
    torch.manual_seed(7)
    loss = objective.differentiable_loss(program.model, program.guide, *args)
    return torch.autograd.grad(loss, list(program.parameters()), allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("toy", [Toy("nested"), Discrete()], ids=["gaussian", "discrete"])
def test_options_that_change_nothing(toy):
    plain = gradient(ELBO(2), toy)
    for same in ({"beta": 1}, {"beta": lambda step: 1.0}, {"free_bits": 0.0}):
        torch.testing.assert_close(gradient(ELBO(2, **same), toy), plain)
    reparameterised = isinstance(toy, Toy)
    if reparameterised:  # a divergence is never below zero
        torch.testing.assert_close(gradient(ELBO(2, capacity=0), toy), plain)
        half = gradient(ELBO(2, beta=0.5), toy)
        torch.testing.assert_close(gradient(ELBO(2, beta=0.5, capacity=0.0), toy), half)
        nothing = gradient(ELBO(2, beta=0.0), toy)
        torch.testing.assert_close(gradient(ELBO(2, free_bits=1e3), toy), nothing)


def test_guides_that_draw_latents_jointly():
    """An auxiliary site and points: one divergence, that of all."""
    x = torch.randn(20, dtype=DTYPE)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        nu = pyro.sample("nu", dist.HalfNormal(torch.ones((), dtype=DTYPE)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, nu), obs=x)

    with pyro.settings.context(module_local_params=True):
        guide = AutoMultivariateNormal(model)
        guide(x)
        program = pyro_dgm.program(model, guide)
        torch.manual_seed(8)
        kl = ELBO(3).bound(model, guide, x) - 0  # of the same draws
        torch.manual_seed(8)
        rest = ELBO(3, beta=0.0).regularised(model, guide, x)
        for free in (0.0, 1e3):
            torch.manual_seed(8)
            found = ELBO(3, free_bits=free).regularised(model, guide, x)
            torch.testing.assert_close(found, rest - max(free, (rest - kl).item()))
        assert ELBO(free_bits=0.1)._regularised(ELBO().particles(model, guide, (x,), {}))[1].shape == ()
        nothing = gradient(ELBO(3, beta=0.0), program, x)
        torch.testing.assert_close(gradient(ELBO(3, free_bits=1e3), program, x), nothing)


@pytest.mark.parametrize("side", ["guide", "model"])
def test_enumerated_sites_are_refused_by_name(side):
    toy = Discrete()
    model, guide = (
        (toy.model, config_enumerate(toy.guide)) if side == "guide" else (config_enumerate(toy.model), nothing)
    )
    objective = ELBO(beta=2.0)
    with pytest.raises(ValueError, match=r"ELBO\(beta=2\) needs .* \['a', 'b'\] are marked for enumeration"):
        objective(model, guide)()
    with pytest.raises(ValueError, match="marked for enumeration"):
        objective.regularised(model, guide)
    torch.testing.assert_close(objective.bound(model, guide), ELBO().bound(model, guide))
    with pytest.raises(ValueError, match="TraceEnumELBO has no beta=2"):
        TraceEnumELBO(beta=2.0)


def nothing():
    pass


# Schedules


def test_schedules_follow_training_and_not_evaluation():
    seen = []

    def beta(step):
        seen.append(step)
        return 0.1 * step

    m, x = LinearGaussian(4, 2).double(), torch.randn(6, 4, dtype=DTYPE)
    objective = ELBO(beta=beta)
    seen.clear()
    for _ in range(3):
        objective.loss_and_grads(m.model, m.guide, x)
        objective.loss(m.model, m.guide, x)
        objective.bound(m.model, m.guide, x)
    assert seen == [1, 2, 3]
    assert objective.step == 3
    torch.testing.assert_close(objective.kl_weight.beta.tensor, torch.tensor(0.3, dtype=DTYPE))
    assert objective.scheduled
    assert ELBO(capacity=beta).scheduled
    assert not ELBO(beta=3, capacity=1.0).scheduled
    assert not ELBO().scheduled


def test_each_step_has_the_gradient_of_its_weight():
    toy = Toy("flat")
    objective = ELBO(beta=LinearSchedule(4, start=0.0, end=2.0), capacity=LinearSchedule(2, 0.5, 1.5))
    for step in (1, 2, 3, 4, 5):
        beta, capacity = min(step / 4, 1.0) * 2.0, 0.5 + min(step / 2, 1.0)
        torch.testing.assert_close(
            gradient(objective, toy), gradient(ELBO(beta=beta, capacity=capacity), toy), msg=f"step {step}"
        )


def train(objective, steps, program=None, state=None):
    """Weights and losses of some steps, going on from where ``state`` was taken."""
    torch.manual_seed(9)
    m = LinearGaussian(4, 2).double() if program is None else program
    x = torch.randn(6, 4, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(m.parameters(), lr=0.01)
    if state is not None:
        objective.load_state_dict(state)
    module = objective(m.model, m.guide)
    for _ in range(steps):
        torch.manual_seed(10 + objective.step)
        optimizer.zero_grad()
        module(x).backward()
        optimizer.step()
    return m


def options_over_time():
    yield {"beta": LinearSchedule(6)}
    yield {"beta": CyclicalSchedule(6, cycles=2), "free_bits": 0.2}
    yield {"beta": 3.0, "capacity": LinearSchedule(6, end=2.0)}


@pytest.mark.parametrize("options", list(options_over_time()), ids=str)
def test_captured_is_eager_step_after_step(options):
    want = train(ELBO(2, **options), 7)
    captured = CapturedELBO(ELBO(2, **options), backend="aten")
    got = train(captured, 7)
    assert captured.status(got.model, got.guide) == "captured: 1 graph (aten)"
    torch.testing.assert_close(got.state_dict(), want.state_dict())
    frozen = train(ELBO(2, **{k: v(1) if callable(v) else v for k, v in options.items()}), 7)
    assert (frozen.weight - want.weight).abs().max() > 1e-4  # a graph that froze the weight would be seen


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: CapturedELBO(o, backend="aten")], ids=["eager", "captured"])
@pytest.mark.parametrize("options", list(options_over_time()), ids=str)
def test_a_run_goes_on_where_it_was(options, wrap):
    want = train(wrap(ELBO(2, **options)), 7)
    first = wrap(ELBO(2, **options))
    half = train(first, 3)
    assert first.state_dict() == {"step": 3}
    got = train(wrap(ELBO(2, **options)), 4, program=half, state=first.state_dict())
    torch.testing.assert_close(got.state_dict(), want.state_dict())


@pytest.mark.parametrize("compiled", ["graph", pytest.param("block", marks=pytest.mark.slow)])
def test_fit_follows_the_schedule_and_reports_the_elbo(compiled):
    x = torch.randn(12, 4, dtype=DTYPE, generator=torch.Generator().manual_seed(1))
    results = []
    for depth in (False, compiled):
        torch.manual_seed(11)
        m = LinearGaussian(4, 2).double()
        objective = ELBO(beta=LinearSchedule(8))
        run = pyro_dgm.fit(
            m, x, objective=objective, epochs=3, batch_size=4, validation=x, seed=0, compile=depth, progress=False
        )
        assert objective.step == 9
        # A block is one graph for ten steps, which would have one weight for all.
        assert run.config["compile"] == {False: "eager", "block": "step"}.get(depth, depth)
        results.append((m.state_dict(), torch.tensor([run.history["train"], run.history["validation"]])))
    torch.testing.assert_close(*results)
    assert (results[0][1][1] < m.log_marginal(x).mean()).all()  # of a lower bound, from the first epoch on


def test_compare_elbos_sees_bounds():
    m, x = LinearGaussian(4, 2).double(), torch.randn(6, 4, dtype=DTYPE)
    objectives = {"plain": ELBO(), "light": ELBO(beta=0.01), "free": ELBO(free_bits=50.0)}
    frame = pyro_dgm.compare_elbos(m, x, objectives, num_replicates=20, seed=0).to_frame()
    bounds, errors = frame["bound"], frame["bound_se"]
    truth = m.log_marginal(x).mean().item()
    assert (bounds < truth + 4 * errors).all()
    assert bounds.max() - bounds.min() < 6 * errors.max()


def test_options_in_float32():
    vae, x = VAE((3, 3), 2, hidden=(5,)), torch.ones(4, 3, 3)
    for options in ({"beta": LinearSchedule(5)}, {"capacity": LinearSchedule(5)}, {"free_bits": 0.5}):
        objective = ELBO(**options)
        objective(vae.model, vae.guide)(x).backward()
        assert objective.regularised(vae.model, vae.guide, x).dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in vae.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": -1.0}, ValueError, "beta must be a finite number, at least 0, got -1.0"),
        ({"beta": math.nan}, ValueError, "beta must be a finite number"),
        ({"beta": "linear"}, TypeError, "beta must be a number or a function of the step, got str"),
        ({"beta": lambda step: -0.5}, ValueError, "beta at step 1 must be a finite number, at least 0, got -0.5"),
        ({"free_bits": -0.1}, ValueError, "free_bits must be a finite number, at least 0"),
        ({"free_bits": LinearSchedule(3)}, TypeError, "free_bits must be a number, got LinearSchedule"),
        ({"capacity": math.inf}, ValueError, "capacity must be a finite number"),
        ({"capacity": 1.0, "free_bits": 1.0}, ValueError, "free_bits and capacity"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        ELBO(**options)


def test_repr():
    assert repr(ELBO(2)) == "ELBO(num_particles=2)"
    assert repr(ELBO(beta=4)) == "ELBO(num_particles=1, beta=4)"
    assert repr(ELBO(free_bits=0.5)) == "ELBO(num_particles=1, free_bits=0.5)"
    assert "beta=LinearSchedule(steps=9" in repr(ELBO(beta=LinearSchedule(9), capacity=3))
