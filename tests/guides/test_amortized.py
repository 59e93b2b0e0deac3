"""Amortised guides of a user's own model, against closed forms, under plates, subsampling and several objectives."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_dgm
from pyro_dgm.guides import Amortized
from pyro_dgm.infer import ELBO, IWAE, STL, DReG

F64 = torch.float64
FAMILIES = ["normal", "low_rank", "full_rank"]


def rows(x):
    return x.reshape(len(x), -1)


def train(program, batch, steps, lr=0.02, objective=None):
    pyro_dgm.fit(
        program, batch, objective=objective or STL(8), max_steps=steps, batch_size=len(batch[0]),
        optimizer=functools.partial(torch.optim.Adam, lr=lr), seed=0, progress=False, compile=False,
    )  # fmt: skip


class Pair:
    """Two latents for each row, correlated in the posterior by a sum, and a mean of all rows: exact evidence."""

    def __init__(self, n=10):
        torch.manual_seed(0)
        self.x = torch.randn(n, dtype=F64) + 1
        # x = mu + a + b + noise of 1/2, all standard normal
        covariance = torch.eye(n, dtype=F64) * 2.25 + 1
        self.log_evidence = float(dist.MultivariateNormal(torch.zeros(n, dtype=F64), covariance).log_prob(self.x))

    @staticmethod
    def model(x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(mu, 1.0))
            b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(a + b, 0.5), obs=x)


@pytest.mark.parametrize("family", ["low_rank", "full_rank"])
def test_a_correlated_posterior_is_found_exactly(family):
    case = Pair()
    torch.manual_seed(0)
    guide = Amortized(case.model, rows, family=family, rank=1)
    program = pyro_dgm.program(case.model, guide)
    train(program, (case.x,), 700)
    with torch.no_grad():
        bound = float(ELBO(400, analytic_kl=False).bound(case.model, guide, case.x))
    # a posterior that is in the family: the bound is the evidence, and its estimate has next to no noise
    assert bound == pytest.approx(case.log_evidence, abs=0.02)
    new = torch.linspace(-2, 3, 7, dtype=F64)  # other data, another number of them: no new parameters
    assert guide(new)["a"].shape == (7,)
    trace = poutine.trace(poutine.block(guide, expose=["_flow_data"])).get_trace(new)
    covariance = trace.nodes["_flow_data"]["fn"].covariance_matrix[0]
    exact = torch.linalg.inv(torch.eye(2, dtype=F64) + 4 * torch.ones(2, 2, dtype=F64))
    torch.testing.assert_close(covariance, exact, rtol=0, atol=0.02)


def test_mean_field_has_independent_sites_and_closed_forms():
    case = Pair()
    torch.manual_seed(0)
    guide = Amortized(case.model, rows)
    guide(case.x)
    trace = poutine.trace(guide).get_trace(case.x)
    assert {n for n, s in trace.nodes.items() if s["type"] == "sample"} >= {"mu", "a", "b"}
    for name in ("a", "b"):
        assert isinstance(trace.nodes[name]["fn"], dist.Normal)
    train(pyro_dgm.program(case.model, guide), (case.x,), 400)
    closed = torch.stack([ELBO(50).bound(case.model, guide, case.x) for _ in range(40)])
    sampled = torch.stack([ELBO(50, analytic_kl=False).bound(case.model, guide, case.x) for _ in range(40)])
    error = ((closed.var() + sampled.var()) / 40).sqrt()
    assert abs(closed.mean() - sampled.mean()) < 4 * error
    # the best mean-field bound of a pair with precision [[5, 4], [4, 5]] lacks log(5 / 3) for each row
    gap = case.log_evidence - float(sampled.mean())
    assert 0.5 * 10 * torch.log(torch.tensor(25 / 9)).item() == pytest.approx(gap, abs=0.4)


class Seen(nn.Module):
    """An encoder that notes how many rows it was given."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return x[:, None]


def subsampled(x):
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x), subsample_size=10) as index:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])


@pytest.mark.parametrize("family", ["normal", "full_rank"])
def test_a_subsample_of_ten_in_a_hundred(family):
    torch.manual_seed(0)
    x = torch.randn(100, dtype=F64) + 1
    encoder = Seen()
    guide = Amortized(subsampled, encoder, family=family)
    program = pyro_dgm.program(subsampled, guide)
    train(program, (x,), 800, lr=0.01)
    assert set(encoder.sizes[5:]) == {10}
    # the exact posterior of the mean, and of a row given the mean: N((mu + 4 x) / 5, 1 / 5)
    precision = 1 + 100 / 1.25
    with torch.no_grad():
        draws = torch.stack([guide(x)["mu"] for _ in range(500)])
        assert draws.mean().item() == pytest.approx(x.sum().item() / 1.25 / precision, abs=0.1)
        assert draws.std().item() == pytest.approx(precision**-0.5, rel=0.3)
        trace = poutine.trace(guide).get_trace(x)
        index, mu = trace.nodes["data"]["value"], trace.nodes["mu"]["value"]
        fn = trace.nodes["z"]["fn"]
        fn = fn.base_dist if family == "full_rank" else fn
        torch.testing.assert_close(fn.mean.flatten(), (mu + 4 * x[index]) / 5, rtol=0, atol=0.15)
        assert fn.variance.mean().item() == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_constrained_sites_have_the_jacobian(family):
    def model(x):
        rate = pyro.sample("rate", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            share = pyro.sample("share", dist.Dirichlet(x.new_ones(3)))
            scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(2), rate[..., None]).to_event(1))
            pyro.sample("x", dist.Normal(share[..., 0] + scale.sum(-1), 1.0), obs=x)

    torch.manual_seed(0)
    x = torch.rand(6, dtype=F64)
    guide = Amortized(model, rows, family=family)
    guide(x)
    draw = guide(x)
    assert draw["share"].shape == (6, 3) and draw["scale"].shape == (6, 2)
    torch.testing.assert_close(draw["share"].sum(-1), torch.ones(6, dtype=F64))
    trace = poutine.trace(guide).get_trace(x)
    expected, outer = 0.0, []
    for group in guide.groups:  # the density of the unconstrained vector, without the log-determinants
        vectors = []
        for part in group.parts:
            value, transform = trace.nodes[part.name]["value"], torch.distributions.biject_to(part.support)
            u = transform.inv(value)
            log_det = transform.log_abs_det_jacobian(u, value)
            expected = expected - log_det.sum()
            vectors.append(u.reshape(*u.shape[: u.dim() - len(part.shape)], -1))
        vector = torch.cat(vectors, -1)
        features = rows(x) if group.plates else None
        expected = expected + guide.distribution(group, {}, features, outer).log_prob(vector).sum()
        outer.append(vector)
    torch.testing.assert_close(trace.log_prob_sum(), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_objectives_and_particles(family):
    case = Pair()
    torch.manual_seed(0)
    guide = Amortized(case.model, rows, family=family, hidden=(8,))
    guide(case.x)
    for objective in (ELBO(3), IWAE(4), DReG(4), STL(3)):
        loss = objective.differentiable_loss(case.model, guide, case.x)
        loss.backward()
        assert all(p.grad is not None for p in guide.parameters())
    svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=2, vectorize_particles=False))
    assert svi.step(case.x) > 0


def test_nested_plates_have_an_encoder_each():
    def model(x):  # groups in columns, data in rows
        with pyro.plate("group", x.shape[1], dim=-1):
            m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("datum", len(x), dim=-2):
                z = pyro.sample("z", dist.Normal(m, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = torch.randn(5, 3, dtype=F64)
    encoders = {"group": lambda x: x.mean(0)[:, None], "datum": lambda x: x[..., None]}
    guide = Amortized(model, encoders)
    draw = guide(x)
    assert draw["m"].shape == (3,) and draw["z"].shape == (5, 3)
    assert torch.isfinite(IWAE(3).bound(model, guide, x)).all()
    with pytest.raises(ValueError, match="encoder has nothing for the plate"):
        Amortized(model, {"datum": encoders["datum"]})(x)


def test_bad_input_is_named():
    x = torch.randn(100)
    with pytest.raises(ValueError, match="family must be 'normal', 'low_rank' or 'full_rank'"):
        Amortized(Pair.model, rows, family="cauchy")
    with pytest.raises(TypeError, match="encoder must be a callable"):
        Amortized(Pair.model, 3)
    with pytest.raises(ValueError, match="rank must be"):
        Amortized(Pair.model, rows, rank=0)
    with pytest.raises(ValueError, match="encoder must give a tensor of shape"):
        Amortized(Pair.model, lambda x: x)(x)

    def hidden_data(n):
        with pyro.plate("data", 100, subsample_size=10) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

    guide = Amortized(hidden_data, lambda n: x[:, None])
    with pytest.raises(ValueError, match="no argument of the model has 100 rows"):
        guide(torch.zeros(3))
