"""Discrete latents summed out of a model: against the sum written by hand, value, gradient and draws."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

from pyro_dgm.infer.mcmc import HMC, MCMC, SGLD
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential

DTYPE = torch.float64
X = torch.tensor([-2.1, -1.8, 0.3, 1.9, 2.2, 2.6], dtype=DTYPE)


def tensor(*values):
    return torch.tensor(values, dtype=DTYPE)


def globals_of():
    weights = pyro.sample("weights", dist.Dirichlet(tensor(1.0, 2.0, 1.5)))
    scale = pyro.sample("scale", dist.LogNormal(tensor(0.0).squeeze(), 0.5))
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(tensor(0.0).squeeze(), 3.0))
    return weights, scale, locs


def mixture(x):
    """Assignments as latents."""
    weights, scale, locs = globals_of()
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[k], scale), obs=x)


def mixture_by_hand(x):
    weights, scale, locs = globals_of()
    terms = weights.log() + dist.Normal(locs, scale).log_prob(x[:, None])
    pyro.factor("x", torch.logsumexp(terms, -1).sum())


def trials(x):
    """Two discrete latents, one within the plate of the other's data, and a continuous latent that depends on them."""
    p = pyro.sample("p", dist.Beta(tensor(2.0).squeeze(), 2.0))
    flip = pyro.sample("flip", dist.Bernoulli(p))
    with pyro.plate("data", len(x)):
        count = pyro.sample("count", dist.Categorical(torch.stack([(1 - p) ** 2, 2 * p * (1 - p), p**2])))
        z = pyro.sample("z", dist.Normal(count + 3.0 * flip, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def trials_by_hand(x):
    p = pyro.sample("p", dist.Beta(tensor(2.0).squeeze(), 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(tensor(0.0).squeeze(), 1.0).mask(False))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
    counts = torch.arange(3, dtype=DTYPE)
    priors = torch.stack([2 * (1 - p).log(), math.log(2.0) + p.log() + (1 - p).log(), 2 * p.log()])
    wholes = []
    for flip in (0.0, 1.0):
        inner = priors + dist.Normal(counts + 3.0 * flip, 1.0).log_prob(z[:, None])
        log_flip = p.log() if flip else (1 - p).log()
        wholes.append(log_flip + torch.logsumexp(inner, -1).sum())
    pyro.factor("sum", torch.logsumexp(torch.stack(wholes), 0))


def switching(x):
    """A hidden Markov chain of two states, written as a loop."""
    stay = pyro.sample("stay", dist.Beta(tensor(4.0).squeeze(), 2.0))
    level = pyro.sample("level", dist.Normal(tensor(0.0, 0.0), 2.0).to_event(1))
    transition = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    state = pyro.sample("state", dist.Categorical(tensor(0.5, 0.5)))
    for t in pyro.markov(range(len(x))):
        state = pyro.sample(f"state {t}", dist.Categorical(transition[state]))
        pyro.sample(f"x {t}", dist.Normal(level[state], 1.0), obs=x[t])


def switching_by_hand(x):
    stay = pyro.sample("stay", dist.Beta(tensor(4.0).squeeze(), 2.0))
    level = pyro.sample("level", dist.Normal(tensor(0.0, 0.0), 2.0).to_event(1))
    transition = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    forward = tensor(0.5, 0.5).log()
    for t in range(len(x)):
        forward = torch.logsumexp(forward[:, None] + transition.log(), 0) + dist.Normal(level, 1.0).log_prob(x[t])
    pyro.factor("x", torch.logsumexp(forward, 0))


PAIRS = {
    "mixture": (mixture, mixture_by_hand),
    "marked mixture": (config_enumerate(mixture), mixture_by_hand),
    "trials": (trials, trials_by_hand),
    "switching": (switching, switching_by_hand),
}


@pytest.mark.parametrize("name", PAIRS)
def test_value_and_gradient_are_those_of_the_sum_by_hand(name):
    summed, by_hand = (ModelPotential(model, (X,), {}) for model in PAIRS[name])
    assert set(summed.latents) == set(by_hand.latents)
    g = torch.Generator().manual_seed(0)
    position = {k: torch.randn(5, *v.shape, generator=g, dtype=DTYPE) for k, v in summed.latents.items()}
    expected = by_hand(position)

    def recorded(position):
        value, *gradients = summed.evaluator.record("gradient", position)(*position.values())
        return value, dict(zip(position, gradients, strict=True))

    for evaluate in (summed, recorded):
        value, gradient = evaluate(position)
        torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=1e-10)
        for k, v in expected[1].items():
            torch.testing.assert_close(gradient[k], v, rtol=1e-10, atol=1e-10)
    assert summed.can_be_recorded  # all chains together, not one after another
    torch.testing.assert_close(summed.value(position), expected[0], rtol=1e-10, atol=1e-10)


def test_draws_are_those_of_the_sum_by_hand():
    runs = []
    for model in (mixture, mixture_by_hand):
        kernel = HMC(model, step_size=0.1, num_steps=3, adapt_step_size=False, adapt_mass_matrix=False)
        mcmc = MCMC(kernel, 25, 0, 4, seed=0, progress=False)
        mcmc.run(X)
        runs.append(mcmc.posterior)
    assert set(runs[0].samples) == {"weights", "scale", "locs"}
    for name, draws in runs[1].samples.items():
        torch.testing.assert_close(runs[0][name], draws, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(runs[0].sample_stats["lp"], runs[1].sample_stats["lp"], rtol=1e-5, atol=1e-6)


def test_a_subsampled_plate_scales_the_sum_and_not_its_terms():
    """log sum_k of a mini-batch, times N / n: not the log of a sum of powers."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(tensor(0.0).squeeze(), 3.0))
        with pyro.plate("data", len(x), subsample_size=2) as i:
            k = pyro.sample("k", dist.Bernoulli(tensor(0.3).squeeze()))
            pyro.sample("x", dist.Normal(loc + 2.0 * k, 1.0), obs=x[i])

    kernel = SGLD(model)
    kernel.condition(X)
    loc = tensor(0.4, -1.0)
    chosen = torch.tensor([[1, 3], [5, 0]])
    value, _ = kernel.potential.on({"loc": loc}, {"data": chosen})
    parts = [
        math.log(w) + dist.Normal(loc[:, None] + shift, 1.0).log_prob(X[chosen])
        for w, shift in ((0.7, 0.0), (0.3, 2.0))
    ]
    expected = -dist.Normal(tensor(0.0), 3.0).log_prob(loc) - 3.0 * torch.logsumexp(torch.stack(parts), 0).sum(-1)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def poisson(x):
    rate = pyro.sample("rate", dist.Gamma(tensor(2.0).squeeze(), 1.0))
    n = pyro.sample("n", dist.Poisson(rate))
    pyro.sample("x", dist.Normal(n, 1.0), obs=x[0])


def several_in_an_event(x):
    p = pyro.sample("p", dist.Beta(tensor(2.0).squeeze(), 2.0))
    bits = pyro.sample("bits", dist.Bernoulli(p.expand(3)).to_event(1))
    pyro.sample("x", dist.Normal(bits.sum(-1), 1.0), obs=x[0])


def nothing_else(x):
    k = pyro.sample("k", dist.Categorical(tensor(0.5, 0.5)))
    pyro.sample("x", dist.Normal(k.to(DTYPE), 1.0), obs=x[0])


def moving(x):
    """A latent whose support moves with a discrete one: its Jacobian would be another for each value."""
    scale = pyro.sample("scale", dist.LogNormal(tensor(0.0).squeeze(), 1.0))
    k = pyro.sample("k", dist.Bernoulli(tensor(0.5).squeeze()))
    z = pyro.sample("z", dist.Uniform(0.0, scale * (1.0 + k)))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def broken(x):
    loc = pyro.sample("loc", dist.Normal(tensor(0.0).squeeze(), 1.0))
    k = pyro.sample("k", dist.Bernoulli(tensor(0.5).squeeze()))
    pyro.sample("fine", dist.Normal(loc, 1.0), obs=x[1])
    pyro.sample("x", dist.Normal(loc + k, 1.0), obs=x[0] * float("nan"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (poisson, r"'n' is discrete \(Poisson\) and cannot be enumerated"),
        (several_in_an_event, r"'bits' is discrete \(Independent\) and cannot be enumerated"),
        (nothing_else, r"\['k'\] are all that there are, and are discrete"),
        (moving, r"support of latent site 'z' depends on a discrete latent"),
        (broken, r"non-finite log-probability at 'x' \(nan\)"),
    ],
)
def test_what_cannot_be_summed_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        MCMC(HMC(model), 5, 5, 2, seed=0, progress=False).run(X)
