"""Annealed importance sampling between densities whose normalisers are known."""

from __future__ import annotations

import math
import warnings

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_dgm.distributions import RBMDistribution
from pyro_dgm.infer.mcmc import HMC, MALA, Langevin, RandomWalk
from pyro_dgm.infer.smc import AIS, bdmc

DIM = 4
MEAN = torch.linspace(-1, 2, DIM, dtype=torch.float64)
_root = torch.randn(DIM, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PRECISION = _root @ _root.mT / DIM + 0.3 * torch.eye(DIM, dtype=torch.float64)
EXACT = float(0.5 * DIM * math.log(2 * math.pi) - 0.5 * torch.logdet(PRECISION))


def start():
    return dist.Normal(torch.zeros(DIM, dtype=torch.float64), 2.0).to_event(1)


def log_f(x: Tensor) -> Tensor:
    return -0.5 * (((x - MEAN) @ PRECISION) * (x - MEAN)).sum(-1)


@pytest.mark.parametrize("kernel", [HMC(), MALA(), RandomWalk()], ids=lambda k: k.name)
def test_gaussian_to_gaussian_in_both_directions(kernel):
    ais = AIS(start(), log_f, kernel, num_temperatures=150)
    forward = ais.forward(300, seed=0)
    samples = dist.MultivariateNormal(MEAN, precision_matrix=PRECISION).sample((300,))
    reverse = ais.reverse(samples, seed=1)
    for estimate in (forward, reverse):
        assert abs(float(estimate) - EXACT) < 4 * float(estimate.standard_error)
        assert float(estimate.standard_error) < 0.2
    assert float(forward.bound) < EXACT < float(reverse.bound)
    assert forward.log_weights.shape == (300,)
    assert forward.samples.shape == (300, DIM)


def test_weighted_samples_are_the_targets():
    found = AIS(start(), log_f, num_temperatures=50).forward(2000, seed=0)
    w = found.log_weights.softmax(0)
    mean = (w[:, None] * found.samples).sum(0)
    sd = PRECISION.inverse().diagonal().sqrt()
    assert ((mean - MEAN).abs() < 4 * sd / float(found.ess) ** 0.5).all()


def test_a_seed_repeats_a_run_and_leaves_the_generators_alone(rng_unchanged):
    ais = AIS(start(), log_f, num_temperatures=20)
    with rng_unchanged():
        first = ais.forward(10, seed=3)
    again = AIS(start(), log_f, num_temperatures=20).forward(10, seed=3)
    torch.testing.assert_close(first.log_weights, again.log_weights, rtol=0, atol=0)


def test_dict_of_sites_on_constrained_supports():
    one = torch.ones((), dtype=torch.float64)
    initial = {"s": dist.Gamma(3 * one, one), "m": dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)}

    def target(z):  # Gamma(5, 3) and N(1, 1/4), without their normalisers
        return 4 * z["s"].log() - 3 * z["s"] - 2 * (z["m"] - 1).square().sum(-1)

    exact = math.lgamma(5) - 5 * math.log(3) + math.log(2 * math.pi) - 2 * math.log(2)
    found = AIS(initial, target, num_temperatures=100).forward(400, seed=0)
    assert abs(float(found) - exact) < 4 * float(found.standard_error)
    mean = (found.log_weights.softmax(0) * found.samples["s"]).sum()
    assert abs(float(mean) - 5 / 3) < 4 * (5**0.5 / 3) / float(found.ess) ** 0.5


def test_a_transition_of_the_users_own():
    rbm = RBMDistribution(
        0.5 * torch.randn(6, 4, dtype=torch.float64),
        torch.randn(6, dtype=torch.float64),
        torch.randn(4, dtype=torch.float64),
    )
    initial = dist.Bernoulli(logits=torch.zeros(6, dtype=torch.float64)).to_event(1)

    def flip(v, beta):  # Metropolis on one unit of each chain
        i = torch.randint(6, (len(v), 1))
        proposal = v.scatter(1, i, 1 - v.gather(1, i))
        gain = beta * (rbm.log_prob(proposal) - rbm.log_prob(v))
        accept = torch.rand(len(v), dtype=v.dtype).log() < gain
        return torch.where(accept[:, None], proposal, v)

    ais = AIS(initial, rbm, transition=flip, num_temperatures=200, num_steps=2)
    found = bdmc(ais, rbm.exact_sample(300), seed=0)
    exact = float(rbm.exact_log_normalizer())
    assert abs(float(found.lower) - exact) < 4 * float(found.lower.standard_error)
    assert abs(float(found.upper) - exact) < 4 * float(found.upper.standard_error)
    assert float(found.lower.bound) < exact < float(found.upper.bound)
    assert abs(found.gap) < 4 * found.gap_standard_error
    assert "Bracket(" in repr(found)


def test_a_start_too_far_away_warns_and_more_temperatures_help():
    far = dist.Normal(torch.full((DIM,), 12.0, dtype=torch.float64), 0.3).to_event(1)
    with pytest.warns(RuntimeWarning, match="effective sample size of the forward weights"):
        poor = AIS(far, log_f, num_temperatures=5).forward(100, seed=0)
    assert float(poor.ess) < 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AIS(start(), log_f, num_temperatures=50).forward(100, seed=0)


def test_untuned_kernel_keeps_its_step_size():
    ais = AIS(start(), log_f, HMC(step_size=0.3, num_steps=5), num_temperatures=100, tune=False)
    found = ais.forward(200, seed=0)
    assert abs(float(found) - EXACT) < 4 * float(found.standard_error)
    assert ais._path.log_steps is None


def test_zero_density_is_a_weight_of_zero_and_nan_is_an_error():
    # Half of a Gaussian that is symmetric about zero in its first coordinate
    def half_normal(x):
        return torch.where(x[:, 0] > 0, -0.5 * x.square().sum(-1), -math.inf)

    near = dist.Normal(torch.zeros(DIM, dtype=torch.float64), 1.2).to_event(1)
    found = AIS(near, half_normal, num_temperatures=2, tune=False).forward(4000, seed=0)
    exact = 0.5 * DIM * math.log(2 * math.pi) - math.log(2)
    assert abs(float(found) - exact) < 4 * float(found.standard_error)
    assert (found.log_weights == -math.inf).any()
    with pytest.raises(ValueError, match="log weights of .* chains are not finite"):
        AIS(start(), lambda x: torch.where(x[:, 0] > 0, log_f(x), math.nan), num_temperatures=5).forward(20, seed=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_temperatures": 1}, ValueError, "num_temperatures must be an integer of at least 2"),
        ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1"),
        ({"kernel": "hmc"}, TypeError, "kernel must be one of pyro_dgm.infer.mcmc"),
        ({"kernel": HMC(potential_fn=lambda u: u["x"].sum(-1))}, ValueError, "no model or potential of its own"),
        ({"kernel": HMC(temperature=2.0)}, ValueError, "kernel must have temperature 1, got 2.0"),
        ({"kernel": Langevin()}, ValueError, "must leave its target invariant, which Langevin does not"),
        ({"transition": 3}, TypeError, "transition must be a function"),
        ({"initial": 3}, TypeError, "initial must be a distribution with sample and log_prob"),
        ({"initial": dist.Normal(torch.zeros(3), 1.0)}, ValueError, "must have no batch dimensions, got"),
        ({"initial": {}}, ValueError, "at least one distribution"),
        (
            {"initial": RBMDistribution(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))},
            ValueError,
            "initial must be normalised",
        ),
        ({"target": 3}, TypeError, "target must be a function"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        AIS(**{"initial": start(), "target": log_f, **arguments})


def test_bad_runs_are_named():
    ais = AIS(start(), log_f, num_temperatures=5)
    with pytest.raises(ValueError, match="num_chains must be an integer of at least 2"):
        ais.forward(1)
    with pytest.raises(ValueError, match="target must give one log-density a chain"):
        AIS(start(), lambda x: x, num_temperatures=5).forward(10)
    with pytest.raises(ValueError, match="initial is discrete, which a kernel cannot move"):
        AIS(dist.Bernoulli(0.5), lambda x: x, num_temperatures=5).forward(10)
    with pytest.raises(TypeError, match="ais must be an AIS"):
        bdmc(3, torch.zeros(2))
