"""Short-run maximum likelihood of a program whose prior learns: its gradient in closed form, and what it refuses."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_dgm
from pyro_dgm.distributions import EnergyDistribution
from pyro_dgm.infer import NonFiniteLossError, ShortRunML
from pyro_dgm.infer.mcmc import HMC
from pyro_dgm.models import LatentEBM

F64 = torch.float64


class Shift(nn.Module):
    """z ~ N(0, 1) tilted by e^{a z / T}, which is N(a / T, 1); x | z ~ N(w z, s^2)."""

    def __init__(self, temperature=1.0, kernel=None, num_steps=60):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.4, dtype=F64))
        self.w = nn.Parameter(torch.tensor(1.3, dtype=F64))
        self.s, self.temperature, self.kernel, self.num_steps = 0.7, temperature, kernel, num_steps

    def prior(self):
        base = dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1)
        return EnergyDistribution(
            lambda z: -self.a * z[:, 0], base=base, temperature=self.temperature, kernel=self.kernel,
            num_steps=self.num_steps, step_size=0.4,
        )  # fmt: skip

    def model(self, x, scale=1):
        with pyro.plate("data", len(x) * scale, subsample=torch.arange(len(x))):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.w * z, self.s).to_event(1), obs=x)

    def guide(self, x, scale=1):
        pass

    def log_marginal(self, x):
        loc, variance = self.w * self.a / self.temperature, self.w**2 + self.s**2
        return dist.Normal(loc, variance.sqrt()).log_prob(x[:, 0])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradient_is_that_of_the_likelihood_where_chains_have_mixed(temperature):
    # A quarter of a turn for the posterior, whose standard deviation is 0.47.
    kernel = HMC(step_size=0.4, trajectory_length=0.8)
    program = Shift(temperature, kernel, num_steps=12)
    x = torch.tensor([[1.3], [3.0], [0.0], [2.1]], dtype=F64).repeat(2000, 1)
    exact = torch.autograd.grad(-program.log_marginal(x).mean(), [program.a, program.w])
    objective = ShortRunML(num_steps=4, kernel=kernel)
    rows = []
    for i in range(15):
        torch.manual_seed(i)
        program.zero_grad()
        objective(program.model, program.guide)(x).backward()
        rows.append(torch.stack([program.a.grad, program.w.grad]) / len(x))
    rows = torch.stack(rows)
    error = rows.std(0) / 15**0.5
    assert ((rows.mean(0) - torch.stack(exact)).abs() < 4 * error).all()
    assert torch.stack(exact).abs().max() > 10 * error.max()


def test_langevin_is_the_default_and_near():
    program = Shift(num_steps=200)
    x = torch.tensor([[0.3], [2.0]], dtype=F64).repeat(2000, 1)
    exact = torch.stack(torch.autograd.grad(-program.log_marginal(x).mean(), [program.a, program.w]))
    torch.manual_seed(0)
    ShortRunML(num_steps=200, step_size=0.1)(program.model, program.guide)(x).backward()
    found = torch.stack([program.a.grad, program.w.grad]) / len(x)
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0.1)
    assert exact.abs().max() > 0.3


def test_fit_finds_the_maximum_of_the_likelihood():
    torch.manual_seed(0)
    x = 1.5 + 1.2 * torch.randn(400, 1, dtype=F64)
    kernel = HMC(step_size=0.5, trajectory_length=1.0)
    program = Shift(kernel=kernel, num_steps=8)
    run = pyro_dgm.fit(
        program, x, objective=ShortRunML(4, kernel=kernel), epochs=100, batch_size=400, seed=0, progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.02, 100),
    )  # fmt: skip
    found = program.log_marginal(x).mean().item()
    best = dist.Normal(x.mean(), x.std(correction=0)).log_prob(x).mean().item()
    assert best - found < 0.01
    assert (program.w * program.a).item() == pytest.approx(x.mean().item(), abs=0.15)
    assert len(run.history["train"]) == 100


def test_loss_by_hand():
    program = Shift(temperature=2.0)
    x = torch.tensor([[0.3], [2.0]], dtype=F64)
    objective = ShortRunML(3, num_prior_steps=2, step_size=0.2)
    torch.manual_seed(4)
    loss = objective(program.model, program.guide)(x)
    torch.manual_seed(4)
    law = program.prior()
    z = law.initial_state(2)
    for _ in range(3):
        score = 0.2 - z + 1.3 / 0.49 * (x - 1.3 * z)  # prior's a / T = 0.2, likelihood's
        z = z + 0.5 * 0.04 * score + 0.2 * torch.randn_like(z)
    y = law.mcmc_step(law.initial_state(2), 2)
    expected = law.log_prob(y).sum() - law.log_prob(z).sum() - dist.Normal(1.3 * z, 0.7).log_prob(x).sum()
    torch.testing.assert_close(loss, expected)


def test_subsampling_scales_the_loss_and_leaves_the_chains_alone():
    program, x = Shift(), torch.tensor([[0.3], [2.0]], dtype=F64)
    losses = []
    for scale in (1, 10):
        torch.manual_seed(0)
        losses.append(ShortRunML(5)(program.model, program.guide)(x, scale))
    torch.testing.assert_close(losses[1], 10 * losses[0])


def test_in_pyros_svi_and_in_validation():
    torch.manual_seed(0)
    program, x = LatentEBM((5,), 2, hidden=(8,), prior_hidden=(8,), num_steps=5), torch.randn(30, 5)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), ShortRunML(5))
    before = {k: v.clone() for k, v in program.state_dict().items()}
    for _ in range(3):
        svi.step(x)
    changed = {k for k, v in program.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in changed} == {"decoder", "energy", "likelihood"}
    assert not pyro.get_param_store()
    run = pyro_dgm.fit(program, x, objective=ShortRunML(5), epochs=2, validation=x, seed=0, progress=False)
    assert all(math.isfinite(v) for v in run.history["validation"])


def test_a_prior_that_is_held_fixed_trains_the_decoder_alone():
    torch.manual_seed(0)
    program, x = LatentEBM((5,), 2, hidden=(8,), prior_hidden=(8,), num_steps=5), torch.randn(30, 5)
    program.energy.requires_grad_(False)
    before = {k: v.clone() for k, v in program.energy.state_dict().items()}
    pyro_dgm.fit(program, x, objective=ShortRunML(5), epochs=1, seed=0, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in program.energy.state_dict().items())


def refused(model, message):
    with pytest.raises(ValueError, match=message):
        ShortRunML()(model, lambda x: None)(torch.randn(3, 1))


def test_programs_of_another_kind_are_refused():
    prior = EnergyDistribution(lambda z: z.sum(-1), base=dist.Normal(torch.zeros(1), 1.0).to_event(1), num_steps=2)

    def normal(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)

    def two(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def outside(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(2), obs=x)

    def shared(x):
        z = pyro.sample("z", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def energies(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior)
            pyro.sample("x", prior, obs=x)

    refused(normal, r"one latent site, of unnormalised density .* this one has \{'z': 'Normal'\}")
    refused(two, r"this one has \{'z': 'EnergyDistribution', 'w': 'Normal'\}")
    refused(outside, "site 'x' must be in the plate 'data' of the latent site")
    refused(shared, "the latent site 'z' must be in one plate")
    refused(energies, "site 'x' has a density known up to a constant, beside the prior's")


def test_nonfinite_densities_are_named():
    torch.manual_seed(0)
    program, x = LatentEBM((5,), 2, hidden=(8,), prior_hidden=(8,), num_steps=5), torch.randn(10, 5)

    def poison(run):
        with torch.no_grad():
            program.decoder.layers[0].weight[0, 0] = math.nan

    with pytest.raises(NonFiniteLossError, match="site 'x' is the first: its log-probability is not finite"):
        pyro_dgm.fit(program, x, objective=ShortRunML(3), epochs=2, callbacks=[poison], seed=0, progress=False)
    with pytest.raises(ValueError, match="chains for the posterior of 'z': the energy is nan at 10 of 10 chains"):
        ShortRunML(3)(program.model, program.guide)(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ShortRunML(0), ValueError, "num_steps must be an integer of at least 1, got 0"),
        (
            lambda: ShortRunML(num_prior_steps=0),
            ValueError,
            "num_prior_steps must be an integer of at least 1, or None",
        ),
        (lambda: ShortRunML(step_size=0.0), ValueError, "step_size must be positive"),
        (lambda: ShortRunML(kernel=HMC(temperature=0.5)), ValueError, "kernel must have temperature 1"),
    ],
)
def test_bad_settings_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
