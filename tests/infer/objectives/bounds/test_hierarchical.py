"""Path-derivative estimators where latents depend on latents, and where only some are reparameterised."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer import ELBO, IWAE, STL, DReG
from pyro_dgm.programs.structure import probe
from tests.infer.objectives.bounds.exact import DTYPE, normal_log_prob


class TwoLayers(torch.nn.Module):
    """x <- z1 <- z2 in the model; z1 then z2 given z1 in the guide, so that q(z2 | z1) carries a path through z1."""

    def __init__(self):
        super().__init__()
        self.x = torch.tensor([0.7, -1.5], dtype=DTYPE)
        for name, value in {"w": 1.3, "log_s": -0.5, "a": 0.6, "log_t": -0.3, "c": 0.9, "log_u": -0.6}.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value, dtype=DTYPE)))

    def model(self):
        zero = torch.zeros((), dtype=DTYPE)
        with pyro.plate("data", 2):
            z2 = pyro.sample("z2", dist.Normal(zero, 1.0))
            z1 = pyro.sample("z1", dist.Normal(torch.sin(z2), 0.8))
            pyro.sample("x", dist.Normal(self.w * z1, self.log_s.exp()), obs=self.x)

    def guide(self):
        with pyro.plate("data", 2):
            z1 = pyro.sample("z1", dist.Normal(self.a * self.x, self.log_t.exp()))
            pyro.sample("z2", dist.Normal(self.c * torch.tanh(z1), self.log_u.exp() * (1 + z1**2).sqrt()))


def gradients(program, objective, count=80, replicates=200):
    def repeated(fn):
        def run():
            with pyro.plate("replicates", replicates, dim=-2):
                fn()

        return run

    model, guide = repeated(program.model), repeated(program.guide)
    rows = [
        torch.stack(torch.autograd.grad(objective.differentiable_loss(model, guide), list(program.parameters())))
        for _ in range(count)
    ]
    rows = torch.stack(rows) / replicates
    return rows.mean(0), rows.std(0) / count**0.5


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(("plain", "path"), [(ELBO(3, analytic_kl=False), STL), (IWAE(3), DReG), (IWAE(8), DReG)])
def test_same_mean_gradient_less_noise(plain, path, vectorize):
    program = TwoLayers()
    torch.manual_seed(0)
    want, want_error = gradients(program, plain)
    estimator = path(plain.num_particles, vectorize_particles=vectorize)
    got, got_error = gradients(program, estimator, 80 if vectorize else 40)
    assert ((got - want) / (got_error**2 + want_error**2).sqrt()).abs().max() < 4
    assert got_error[2:].norm() < 0.2 * got[2:].norm()
    if path is DReG and vectorize:
        assert got_error[2:].norm() < want_error[2:].norm()


class Mixed(torch.nn.Module):
    """A Bernoulli choice between two components and a Gaussian latent given the choice: sum and quadrature."""

    def __init__(self):
        super().__init__()
        self.x = torch.tensor([0.4, -1.1], dtype=DTYPE)
        for name, value in {"logit": 0.3, "w": 1.4, "qa": 0.5, "qb": 0.7, "qc": -0.4, "log_t": -0.4}.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value, dtype=DTYPE)))

    def model(self):
        with pyro.plate("data", 2):
            b = pyro.sample("b", dist.Bernoulli(logits=self.logit))
            z = pyro.sample("z", dist.Normal(2 * b - 1, 1.0))
            pyro.sample("x", dist.Normal(self.w * z, 0.7), obs=self.x)

    def guide(self):
        with pyro.plate("data", 2):
            b = pyro.sample("b", dist.Bernoulli(logits=self.qa * self.x))
            pyro.sample("z", dist.Normal(self.qb * self.x + self.qc * b, self.log_t.exp()))

    def elbo(self):
        eps = torch.linspace(-9, 9, 2001, dtype=DTYPE)
        mass = torch.softmax(-0.5 * eps**2, 0)
        one, noise = torch.ones((), dtype=DTYPE), torch.tensor(0.7, dtype=DTYPE)
        total = 0.0
        for b in (0.0, 1.0):
            state = torch.full_like(self.x, b)
            log_q = dist.Bernoulli(logits=self.qa * self.x).log_prob(state)
            z = (self.qb * self.x + self.qc * b)[:, None] + self.log_t.exp() * eps
            log_w = (
                dist.Bernoulli(logits=self.logit).log_prob(state)[:, None]
                + normal_log_prob(z, 2 * b - 1, one)
                + normal_log_prob(self.x[:, None], self.w * z, noise)
                - log_q[:, None]
                - (normal_log_prob(eps, 0.0, one) - self.log_t)
            )
            total = total + log_q.exp() * (mass * log_w).sum(-1)
        return total.sum()


@pytest.mark.parametrize("objective", [ELBO(2), ELBO(2, analytic_kl=False), STL(2), IWAE(1)], ids=repr)
def test_mixed_sites_against_quadrature(objective):
    program = Mixed()
    want = -torch.stack(torch.autograd.grad(program.elbo(), list(program.parameters())))
    torch.manual_seed(1)
    got, error = gradients(program, objective)
    assert ((got - want) / error.clamp(min=1e-9)).abs().max() < 4
    assert error.norm() < 0.15 * want.norm()


def test_looking_at_the_structure_leaves_the_random_state_alone():
    program = TwoLayers()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert probe(program.model, program.guide, (), {}).nesting == 1
    assert torch.equal(before, torch.get_rng_state())
