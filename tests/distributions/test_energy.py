"""An energy as a distribution: its density, its chains, and its place as a prior."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_dgm
from pyro_dgm.distributions import EnergyDistribution, ReplayBuffer
from pyro_dgm.infer import ELBO
from pyro_dgm.infer.mcmc import HMC, MALA, Langevin

F64 = torch.float64


def normal(dim=1, scale=2.0, dtype=F64):
    return dist.Normal(torch.zeros(dim, dtype=dtype), scale).to_event(1)


def quadratic(x):
    return 0.5 * x.square().sum(-1)


def wells(z):
    return 0.7 * (z.square() - 1).square().sum(-1) - 0.5 * z.sum(-1)


def expectation(log_density, fn, low=-8.0, high=8.0):
    """Of a function under an unnormalised density on the line, and its log normaliser, by quadrature."""
    grid = torch.linspace(low, high, 8001, dtype=F64)
    values = log_density(grid[:, None])
    log_z = torch.logsumexp(values, 0) + math.log(float(grid[1] - grid[0]))
    weights = (values - log_z).exp() * (grid[1] - grid[0])
    return float((weights * fn(grid)).sum()), float(log_z)


# Density


def test_log_prob_is_base_minus_energy_over_temperature():
    x = torch.randn(7, 3, dtype=F64)
    law = EnergyDistribution(quadratic, base=normal(3), temperature=0.25)
    torch.testing.assert_close(law.log_prob(x), normal(3).log_prob(x) - 4.0 * quadratic(x))
    bare = EnergyDistribution(quadratic, (3,), temperature=2.0)
    torch.testing.assert_close(bare.log_prob(x), -quadratic(x) / 2)
    assert law.event_shape == bare.event_shape == (3,)
    assert not law.normalized and law.log_normalizer is None


def test_shapes_expand_and_vmap():
    law = EnergyDistribution(quadratic, base=normal(3))
    x = torch.randn(2, 5, 3, dtype=F64)
    assert law.log_prob(x).shape == (2, 5)
    assert law.log_prob(x[0, 0]).shape == ()
    wide = law.expand([4, 5])
    assert wide.batch_shape == (4, 5)
    assert wide.log_prob(x[0]).shape == (4, 5)
    assert wide.sample((2,)).shape == (2, 4, 5, 3)
    torch.testing.assert_close(torch.func.vmap(EnergyDistribution(quadratic, (3,)).log_prob)(x[0]), -quadratic(x[0]))
    assert isinstance(law.support, constraints.independent)
    assert EnergyDistribution(quadratic, (2, 3)).support.event_dim == 2


def test_an_energy_with_a_noise_level():
    def energy(x, sigma):
        assert sigma.shape == x.shape[:1]
        return quadratic(x) / (1 + sigma**2)

    law = EnergyDistribution(energy, (2,), noise_level=1.0)
    x = torch.randn(3, 4, 2)
    torch.testing.assert_close(law.log_prob(x), -quadratic(x) / 2)
    torch.testing.assert_close(law.noisy_log_prob(x, torch.full((3, 4), 3.0)), -quadratic(x) / 10)
    assert law.sample((5,)).shape == (5, 2)
    with pytest.raises(ValueError, match="takes no noise level"):
        EnergyDistribution(quadratic, (2,)).noisy_log_prob(x, torch.ones(3, 4))


# Chains


def test_langevin_settles_on_its_own_law_at_the_temperature():
    # ULA on N(0, T s^2) settles on variance T s^2 / (1 - eps^2 / (4 T s^2)), here with T s^2 = 0.5.
    torch.manual_seed(0)
    law = EnergyDistribution(quadratic, (1,), temperature=0.5, step_size=0.6, num_steps=60)
    assert float(law.log_prob(torch.ones(1))) == pytest.approx(-1.0)
    x = law.sample((20_000,)).double()
    exact = 0.5 / (1 - 0.36 / 2)
    assert abs(float(x.var()) - exact) < 4 * exact * (2 / 20_000) ** 0.5
    assert abs(float(x.mean())) < 4 * (exact / 20_000) ** 0.5


@pytest.mark.parametrize(
    "kernel", [HMC(step_size=0.3, trajectory_length=1.0), MALA(step_size=0.4), Langevin(step_size=0.15)],
    ids=["hmc", "mala", "langevin"],
)  # fmt: skip
def test_kernels_sample_the_tilted_base(kernel):
    torch.manual_seed(0)
    law = EnergyDistribution(wells, base=normal(), kernel=kernel, num_steps=300, initial=normal(scale=1.0))
    mean, _ = expectation(law.log_prob, lambda z: z)
    square, _ = expectation(law.log_prob, lambda z: z**2)
    z = law.sample((4000,))[:, 0]
    assert abs(float(z.square().mean()) - square) < 4.5 * float(z.square().std()) / 4000**0.5
    assert abs(float(z.mean()) - mean) < 4.5 * float(z.std()) / 4000**0.5
    assert kernel.potential_fn is None and "potential" not in vars(kernel)


@pytest.mark.parametrize("base", [dist.Gamma(2.0, 1.0), dist.Beta(2.0, 3.0), dist.Uniform(-1.0, 2.0)])
def test_the_support_is_that_of_the_base(base):
    wide = base.expand([1]).to_event(1)
    torch.manual_seed(0)
    law = EnergyDistribution(lambda x: 2 * x.sum(-1), base=wide, kernel=HMC(step_size=0.3), num_steps=40)
    x = law.sample((4000,))
    assert law.support.check(x).all()
    low, high = {dist.Gamma: (1e-9, 20), dist.Beta: (1e-9, 1 - 1e-9), dist.Uniform: (-1 + 1e-9, 2 - 1e-9)}[type(base)]
    mean, _ = expectation(lambda g: law.log_prob(g), lambda g: g, low, high)
    assert abs(float(x.double().mean()) - mean) < 4.5 * float(x.std()) / 4000**0.5


def test_chains_are_without_gradient_and_reproducible():
    net = nn.Linear(2, 1)
    law = EnergyDistribution(lambda x: net(x).squeeze(-1), base=normal(2, 1.0, torch.float32))
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append(law.expand([3]).sample())
    assert torch.equal(*draws) and not draws[0].requires_grad
    assert net.weight.grad is None


def test_starts_follow_the_energys_dtype():
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()
    assert EnergyDistribution(net, (2,)).initial_state(3).dtype == F64
    assert EnergyDistribution(net.forward, (2,)).initial_state(3).dtype == F64
    start = dist.Uniform(torch.full((2,), 5.0), 6.0).to_event(1)
    assert (EnergyDistribution(quadratic, (2,), initial=start).initial_state(3) >= 5).all()


# Replay buffer


def test_buffer_goes_on_from_where_chains_have_been():
    torch.manual_seed(0)
    buffer = ReplayBuffer(50, (1,), reinit=0.0)
    far = dist.Normal(torch.tensor([30.0]), 0.1).to_event(1)
    law = EnergyDistribution(quadratic, (1,), step_size=0.3, num_steps=20, buffer=buffer, initial=far)
    means = [float(law.sample((20,)).mean()) for _ in range(15)]
    assert means[0] > 10  # 20 steps of 0.045 lead from 30 to about 12
    assert abs(means[-1]) < 1.5
    assert len(buffer) == 50 and int(buffer.added) == 300
    with_restarts = ReplayBuffer(50, (1,), reinit=1.0)
    law = EnergyDistribution(quadratic, (1,), step_size=0.3, num_steps=20, buffer=with_restarts, initial=far)
    assert min(float(law.sample((20,)).mean()) for _ in range(5)) > 10


def test_buffer_holds_the_last_states():
    buffer = ReplayBuffer(4, (1,))
    buffer.add(torch.arange(3.0)[:, None])
    assert sorted(buffer.states[: len(buffer), 0].tolist()) == [0, 1, 2]
    buffer.add(torch.arange(3.0, 6.0)[:, None])
    assert sorted(buffer.states[:, 0].tolist()) == [2, 3, 4, 5]
    buffer.add(torch.arange(10.0)[:, None])
    assert sorted(buffer.states[:, 0].tolist()) == [6, 7, 8, 9]


def test_share_of_fresh_starts():
    torch.manual_seed(0)
    buffer = ReplayBuffer(10, (2,), reinit=0.05)
    buffer.add(torch.zeros(10, 2))
    fresh = buffer.begin(20_000, lambda n: torch.ones(n, 2))[:, 0]
    assert abs(float(fresh.mean()) - 0.05) < 4 * (0.05 * 0.95 / 20_000) ** 0.5
    assert set(fresh.tolist()) == {0.0, 1.0}


def test_a_restored_buffer_goes_on_exactly():
    def law():
        return EnergyDistribution(quadratic, (2,), num_steps=5, buffer=ReplayBuffer(20, (2,), 0.3))

    torch.manual_seed(0)
    first = law()
    for _ in range(3):
        first.sample((8,))
    state, rng = {k: v.clone() for k, v in first.buffer.state_dict().items()}, torch.get_rng_state()
    expected = [first.sample((8,)) for _ in range(2)]
    second = law()
    second.buffer.load_state_dict(state)
    torch.set_rng_state(rng)
    assert all(torch.equal(a, second.sample((8,))) for a in expected)
    torch.testing.assert_close(first.buffer.states, second.buffer.states, rtol=0, atol=0)


# As a prior


def likelihood(z):
    return dist.Normal(z, 0.8).to_event(1)


def model_of(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    return model


X = torch.tensor([[0.3], [-1.5], [2.0]], dtype=F64)


def test_posterior_by_hmc_against_quadrature():
    prior = EnergyDistribution(wells, base=normal(), num_steps=5)
    post = pyro_dgm.sample_posterior(
        model_of(prior), X, method="hmc", num_samples=300, num_chains=64, seed=0, progress=False
    )
    idata = pyro_dgm.to_arviz(post)
    z = torch.as_tensor(idata.posterior["z"].values)[..., 0]
    assert idata.posterior["z"].dims[:3] == ("chain", "draw", "data")
    for n, x in enumerate(X):

        def log_joint(grid, x=x):
            return prior.log_prob(grid) + likelihood(grid).log_prob(x)

        for fn in (lambda v: v, lambda v: v.square(), lambda v: (v > 0).to(F64)):
            exact, _ = expectation(log_joint, fn)
            chains = fn(z[..., n]).mean(1)  # independent chains give the standard error
            assert abs(float(chains.mean()) - exact) < 4.5 * float(chains.std()) / 64**0.5 + 1e-3
    torch.testing.assert_close(
        torch.as_tensor(idata["log_prior"]["z"].values), prior.log_prob(torch.as_tensor(idata.posterior["z"].values))
    )
    assert idata["log_likelihood"]["x"].shape == (64, 300, 3)


def skewed(z):
    return z.mul(1.5).exp().sum(-1) - z.sum(-1)


def exact_elbo(prior, x, loc, log_scale, log_z):
    """Of a normal guide, by Gauss-Hermite quadrature, with the prior's normaliser."""
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(80))
    z = (loc + log_scale.exp() * nodes)[:, None]
    terms = prior.log_prob(z) + likelihood(z).log_prob(x) - log_z
    entropy = 0.5 * math.log(2 * math.pi * math.e) + log_scale
    return (weights / weights.sum() * terms).sum() + entropy


def best_guide(prior, x, log_z):
    loc, log_scale = (torch.zeros((), dtype=F64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([loc, log_scale], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -exact_elbo(prior, x, loc, log_scale, log_z)
        loss.backward()
        return loss

    optimizer.step(closure)
    value = exact_elbo(prior, x, loc, log_scale, log_z)
    return tuple(float(v.detach()) for v in (loc, log_scale.exp(), value))


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3, 1, dtype=F64))
        self.log_scale = nn.Parameter(torch.zeros(3, 1, dtype=F64))

    def forward(self, x):
        pyro.module("guide", self, update_module_params=False)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


@pytest.mark.uses_param_store
def test_prior_in_svi_against_quadrature():
    prior = EnergyDistribution(skewed, base=normal(), num_steps=2)
    _, log_z = expectation(prior.log_prob, lambda v: v)
    model, guide = model_of(prior), Guide()
    best = [best_guide(prior, x, log_z) for x in X]
    torch.manual_seed(0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), ELBO(num_particles=20))
    for i in range(600):
        if i == 400:
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.002}), ELBO(num_particles=20))
        svi.step(X)
    for n, (loc, scale, _) in enumerate(best):
        assert guide.loc[n].item() == pytest.approx(loc, abs=0.03)
        assert guide.log_scale[n].exp().item() == pytest.approx(scale, rel=0.04)
    # the bound is too large by log Z, and by nothing else
    found = ELBO(num_particles=20_000).bound(model, guide, X) - log_z
    assert found.tolist() == pytest.approx([value for *_, value in best], abs=0.03)
    assert abs(log_z) > 0.3


@pytest.mark.uses_param_store
def test_prior_under_pyros_own_elbo():
    prior = EnergyDistribution(skewed, base=normal(), num_steps=2)
    _, log_z = expectation(prior.log_prob, lambda v: v)
    model, guide = model_of(prior), Guide()
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.99}), elbo)
    for _ in range(400):
        svi.step(X)
    for n, x in enumerate(X):
        loc, scale, _ = best_guide(prior, x, log_z)
        assert guide.loc[n].item() == pytest.approx(loc, abs=0.04)
        assert guide.log_scale[n].exp().item() == pytest.approx(scale, rel=0.05)
    # The two bounds, of one program, are one number: too large by log Z for each of the three data.
    many = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    ours = ELBO(num_particles=20_000).bound(model, guide, X).sum().item()
    assert -many.loss(model, guide, X) == pytest.approx(ours, abs=0.06)


def test_prior_in_fit_and_by_the_guides_draws():
    prior = EnergyDistribution(skewed, base=normal(), num_steps=2)
    program = pyro_dgm.program(model_of(prior), Guide())
    run = pyro_dgm.fit(program, X, objective=ELBO(num_particles=20), epochs=60, seed=0, progress=False,
                       optimizer=lambda p: torch.optim.Adam(p, lr=0.02))  # fmt: skip
    assert run.history["train"][-1] > run.history["train"][0]
    draws = pyro_dgm.sample_posterior(program, X, method="guide", num_samples=20, seed=0)
    assert pyro_dgm.to_arviz(draws).posterior["z"].shape == (4, 20, 3, 1)


@pytest.mark.uses_param_store
def test_a_prior_that_learns_is_refused_by_bounds_until_it_is_held_fixed():
    net = nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)).double()
    model = model_of(EnergyDistribution(net, base=normal(), num_steps=2))
    with pytest.raises(ValueError, match=r"'z' has a density known up to a constant .*ShortRunML"):
        ELBO()(model, Guide())(X)
    net.requires_grad_(False)
    assert torch.isfinite(ELBO()(model, Guide())(X))


# Bad input


def nan_beyond(x):
    return torch.where(x.sum(-1) > 0.1, math.nan, quadratic(x))


@pytest.mark.parametrize("kernel", [None, HMC(step_size=0.1)])
def test_nonfinite_energies_are_named(kernel):
    law = EnergyDistribution(nan_beyond, (1,), kernel=kernel, num_steps=3)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"EnergyDistribution: the energy is nan at \d+ of 20 chains after 3 "):
        law.sample((20,))
    steep = EnergyDistribution(lambda x: x.pow(4).sum(-1), (1,), step_size=3.0)
    with pytest.raises(ValueError, match="take a smaller step size"):
        steep.sample((20,))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EnergyDistribution(quadratic, (2,), temperature=0.0), ValueError, "temperature must be positive"),
        (lambda: EnergyDistribution(quadratic, (2,), temperature=-1.0), ValueError, "temperature must be positive"),
        (lambda: EnergyDistribution(quadratic, (2,), step_size=math.inf), ValueError, "step_size must be positive"),
        (lambda: EnergyDistribution(quadratic, (2,), noise_level=0.0), ValueError, "noise_level must be positive"),
        (lambda: EnergyDistribution(quadratic, (2,), num_steps=0), ValueError, "num_steps must be an integer"),
        (lambda: EnergyDistribution(quadratic), ValueError, "give event_shape, or a base"),
        (lambda: EnergyDistribution(3, (2,)), TypeError, "energy must be a function"),
        (lambda: EnergyDistribution(quadratic, base=dist.Normal(torch.zeros(2), 1)), ValueError, "no batch dimensions"),
        (lambda: EnergyDistribution(quadratic, (3,), base=normal(2)), ValueError, "base must have event shape"),
        (lambda: EnergyDistribution(quadratic, base=EnergyDistribution(quadratic, (2,))), ValueError, "normalised"),
        (lambda: EnergyDistribution(quadratic, (2,), kernel="hmc"), TypeError, "kernel must be one of"),
        (lambda: EnergyDistribution(quadratic, (2,), kernel=HMC(temperature=0.1)), ValueError, "1, got 0.1"),
        (lambda: EnergyDistribution(quadratic, (2,), kernel=HMC(potential_fn=quadratic)), ValueError, "of its own"),
        (lambda: EnergyDistribution(quadratic, (2,), buffer=[]), TypeError, "buffer must be a ReplayBuffer"),
        (lambda: EnergyDistribution(quadratic, (2,), buffer=ReplayBuffer(5, (3,))), ValueError, r"of shape \(2,\)"),
        (lambda: EnergyDistribution(lambda x: x, (2,)).log_prob(torch.ones(4, 2)), ValueError, r"shape \(4,\), got"),
        (lambda: ReplayBuffer(0), ValueError, "capacity must be an integer of at least 1"),
        (lambda: ReplayBuffer(5, reinit=1.5), ValueError, r"reinit must be in \[0, 1\]"),
        (lambda: ReplayBuffer(5, (2,)).draw(1), ValueError, "the replay buffer is empty"),
        (lambda: ReplayBuffer(5, (2,)).add(torch.ones(3)), ValueError, "states must have shape"),
        (lambda: ReplayBuffer(5, (1,)).add(torch.full((3, 1), math.nan)), ValueError, "3 values that are not finite"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
