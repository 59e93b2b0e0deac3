"""The relaxation handler: gradients against quadrature, values and densities against their definitions."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_dgm.infer import ELBO, CapturedELBO, DReG, continuous_relaxation

DTYPE = torch.float64
X = torch.tensor(0.8, dtype=DTYPE)


class One(torch.nn.Module):
    """One Bernoulli cause of one Gaussian observation."""

    def __init__(self):
        super().__init__()
        for name, value in {"prior": 0.4, "weight": 1.7, "logit": -0.6}.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value, dtype=DTYPE)))

    def model(self):
        b = pyro.sample("b", dist.Bernoulli(logits=self.prior))
        pyro.sample("x", dist.Normal(self.weight * b, 1.0), obs=X)

    def guide(self):
        pyro.sample("b", dist.Bernoulli(logits=self.logit))

    def exact(self, temperature, hard):
        """Relaxed ELBO by the trapezoid rule over logistic noise, written out by hand."""
        noise = torch.linspace(-40, 40, 20_001, dtype=DTYPE)
        mass = torch.sigmoid(noise) * torch.sigmoid(-noise) * (noise[1] - noise[0])

        def log_density(soft_logit, logit):
            # of sigmoid((logit + noise) / temperature), up to the Jacobian that model and guide share
            z = temperature * soft_logit - logit
            return -z - 2 * torch.nn.functional.softplus(-z)

        soft_logit = (self.logit + noise) / temperature
        soft = soft_logit.sigmoid()
        seen = (soft_logit > 0).to(DTYPE) + soft - soft.detach() if hard else soft
        log_lik = dist.Normal(self.weight * seen, 1.0).log_prob(X)
        return (mass * (log_lik + log_density(soft_logit, self.prior) - log_density(soft_logit, self.logit))).sum()


@pytest.mark.parametrize("method", ["gumbel_softmax", "straight_through"])
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_bound_and_mean_gradient_against_quadrature(method, temperature):
    torch.manual_seed(0)
    one = One()
    bound = one.exact(temperature, method == "straight_through")
    want = torch.stack([bound.detach(), *torch.autograd.grad(bound, list(one.parameters()))])
    model, guide = (continuous_relaxation(fn, method=method, temperature=temperature) for fn in (one.model, one.guide))
    rows = []
    for _ in range(100):
        loss = ELBO(num_particles=200).differentiable_loss(model, guide)
        rows.append(-torch.stack([loss.detach(), *torch.autograd.grad(loss, list(one.parameters()))]))
    rows = torch.stack(rows)
    error = rows.std(0) / 10
    assert ((rows.mean(0) - want) / error).abs().max() < 4
    assert error.norm() < 0.05 * want.norm()


def program(kind):
    logits = torch.tensor([[0.3, -1.0, 0.2], [2.0, 0.0, -0.5]], dtype=DTYPE)
    seen = {}

    def model():
        with pyro.plate("data", 2):
            if kind == "bernoulli":
                fn = dist.Bernoulli(logits=logits).to_event(1).mask(torch.tensor([True, False]))
            else:
                fn = (dist.OneHotCategorical if kind == "onehot" else dist.Categorical)(logits=logits)
            seen["z"] = pyro.sample("z", fn)

    return model, seen


@pytest.mark.parametrize("kind", ["bernoulli", "onehot", "categorical"])
@pytest.mark.parametrize("method", ["gumbel_softmax", "straight_through"])
def test_values_of_every_kind_in_a_particle_plate(kind, method):
    torch.manual_seed(0)
    model, seen = program(kind)
    with pyro.plate("particles", 1000, dim=-2):
        trace = poutine.trace(continuous_relaxation(model, method=method, temperature=0.7)).get_trace()
    soft = trace.nodes["z"]["value"]
    assert soft.shape == seen["z"].shape == (1000, 2, 3)
    assert 0 < soft.min() and soft.max() < 1 and trace.nodes["z"]["fn"].has_rsample
    assert trace.nodes["z"]["fn"].log_prob(soft).isfinite().all()
    # What is largest (above a half) is the discrete draw: its frequency is the discrete probability, within 4 errors.
    logits = torch.tensor([[0.3, -1.0, 0.2], [2.0, 0.0, -0.5]], dtype=DTYPE)
    chance = logits.sigmoid() if kind == "bernoulli" else logits.softmax(-1)
    hard = soft.round() if kind == "bernoulli" else torch.nn.functional.one_hot(soft.argmax(-1), 3).to(DTYPE)
    assert ((hard.mean(0) - chance) / (chance * (1 - chance) / 1000).sqrt()).abs().max() < 4
    assert torch.equal(seen["z"], soft if method == "gumbel_softmax" else hard)


def test_only_the_sites_that_are_named():
    def model():
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("c", dist.Normal(a + b, 1.0))
        pyro.sample("d", dist.Bernoulli(0.5), obs=torch.tensor(1.0))

    trace = poutine.trace(continuous_relaxation(model, sites=["b"])).get_trace()
    assert [isinstance(trace.nodes[n]["fn"], dist.RelaxedBernoulli) for n in "abcd"] == [False, True, False, False]
    trace = poutine.trace(continuous_relaxation(model)).get_trace()
    assert [isinstance(trace.nodes[n]["fn"], dist.RelaxedBernoulli) for n in "abcd"] == [True, True, False, False]
    with pytest.raises(ValueError, match="continuous_relaxation.. handles Bernoulli.*but 'c' is Normal"):
        continuous_relaxation(model, sites="c")()


def test_an_annealed_temperature_is_read_by_a_captured_graph():
    one, temperature = One(), torch.tensor(1.0, dtype=DTYPE)
    model, guide = (
        continuous_relaxation(one.model, temperature=temperature),
        continuous_relaxation(one.guide, temperature=temperature),
    )
    captured = CapturedELBO(DReG(num_particles=4), backend="aten")
    for value in (1.0, 0.3):
        temperature.fill_(value)
        torch.manual_seed(0)
        want = DReG(num_particles=4).differentiable_loss(model, guide)
        torch.manual_seed(0)
        got = captured.differentiable_loss(model, guide)
        torch.testing.assert_close(got, want)
    assert captured.status(model, guide).startswith("captured: 1 graph")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "gumbel"}, ValueError, "method must be one of"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive, got 0.0"),
        ({"fn": 3}, TypeError, "fn must be a model or a guide"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        continuous_relaxation(**{"fn": One().model, **arguments})
