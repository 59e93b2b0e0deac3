"""The energy-based model of data: its base, what it learns on a plane, and its log Z by annealing."""

from __future__ import annotations

import json
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_dgm
from pyro_dgm.infer import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastive,
    PersistentCD,
    ScoreMatching,
    SlicedScoreMatching,
)
from pyro_dgm.infer.mcmc import HMC
from pyro_dgm.infer.smc import AIS
from pyro_dgm.models import EBM


def grid_log_z(ebm, half=5.0, side=201):
    """Log normaliser of a density on the plane."""
    line = torch.linspace(-half, half, side, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    step = float(line[1] - line[0])
    return float(torch.logsumexp(ebm.distribution().log_prob(points).detach(), 0)) + 2 * math.log(step)


@pytest.mark.parametrize("argument", ["base", "initial", "kernel", "network"])
def test_custom_in_a_saved_configuration_is_refused_by_name(argument):
    """Something of one's own is not in the file: it is asked for, never replaced by a default."""
    with pytest.raises((TypeError, ValueError), match=f"{argument} must be"):
        EBM((2,), **{argument: "custom"})


@pytest.mark.parametrize(
    "objective",
    [
        lambda: ContrastiveDivergence(20),
        lambda: PersistentCD(20, num_chains=200, buffer=400, reinit=0.05),
        ScoreMatching,
        lambda: DenoisingScoreMatching(0.2),
        SlicedScoreMatching,
        lambda: NoiseContrastive(2, dist.Normal(torch.zeros(2).double(), 1.5).to_event(1)),
    ],
    ids=["cd", "pcd", "sm", "dsm", "ssm", "nce"],
)
def test_every_objective_fits_a_skewed_density_on_the_plane(objective):
    # x1 ~ N(0, 1), x2 | x1 ~ N(x1^2 / 2, 0.5^2): its entropy is that of the two normals.
    torch.manual_seed(0)
    a = torch.randn(1000, dtype=torch.float64)
    x = torch.stack([a, 0.5 * a**2 + 0.5 * torch.randn(1000, dtype=torch.float64)], 1)
    exact = dist.Normal(0.0, 1.0).log_prob(x[:, 0]) + dist.Normal(0.5 * x[:, 0] ** 2, 0.5).log_prob(x[:, 1])
    ebm = EBM((2,), hidden=(32, 32), base_scale=2.0, step_size=0.25).double()
    start = -ebm.free_energy(x).mean().item() - grid_log_z(ebm, 9.0)
    pyro_dgm.fit(
        ebm, x, objective=objective(), epochs=25, batch_size=200, seed=0, progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.05, 25),
    )  # fmt: skip
    found = -ebm.free_energy(x).mean().item() - grid_log_z(ebm, 9.0)
    assert start < exact.mean().item() - 0.5
    assert exact.mean().item() - 0.2 < found < exact.mean().item() + 0.05


def test_persistent_chains_train_stably_and_long_chains_from_data_stay():
    # Images of 4 x 4: four patterns with normal noise, whose density is known.
    torch.manual_seed(0)
    half = torch.ones(2, 4)
    patterns = torch.stack([torch.cat([half, -half]), torch.cat([-half, half])])
    patterns = torch.cat([patterns, patterns.mT])
    truth = dist.MixtureSameFamily(dist.Categorical(torch.ones(4)), dist.Normal(patterns, 0.4).to_event(2))
    x, held = truth.sample((600,)), truth.sample((200,))
    ebm = EBM((4, 4), "conv", (16, 32), step_size=0.2)
    assert ebm.temperature == 1.0
    ebm.initialize_base(x)
    run = pyro_dgm.fit(
        ebm, x, objective=PersistentCD(10, num_chains=60, buffer=120), epochs=20, batch_size=50, seed=0,
        progress=False, optimizer=lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.0, 0.999)),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.02, 20),
    )  # fmt: skip
    gaps = torch.tensor(run.history["train"])
    assert gaps.abs().max() < 6
    assert gaps[-5:].mean().abs() < 0.6
    chains = ebm.sample(200, num_steps=800, initial=held, seed=0)
    energies = [ebm.free_energy(v).detach() for v in (held, chains)]
    # The standard error of either difference of means is under 0.4 nats, of 200 values each.
    assert (energies[1].mean() - energies[0].mean()).abs() < 1.5
    assert (truth.log_prob(chains).mean() - truth.log_prob(held).mean()).abs() < 1.5
    nearest = torch.cdist(chains.flatten(1), patterns.flatten(1)).min(1)
    assert (nearest.values / 4 < 0.65).float().mean() > 0.9
    assert nearest.indices.bincount(minlength=4).min() > 20
    # From the base they come there too.
    begun = ebm.sample(200, num_steps=400, seed=0)
    assert truth.log_prob(ebm.base().sample((200,))).mean() < truth.log_prob(held).mean() - 20
    assert (truth.log_prob(begun).mean() - truth.log_prob(held).mean()).abs() < 1.5


def test_chains_begin_where_initial_says():
    far = dist.Normal(torch.full((2,), 30.0), 0.1).to_event(1)
    ebm = EBM((2,), hidden=(8,), step_size=0.01, initial=far)
    assert (ebm.sample(5, num_steps=2, seed=0) > 28).all()
    with pytest.raises(ValueError, match="initial must have event shape"):
        EBM((3,), hidden=(8,), initial=far)


def test_log_normalizer_by_annealing_from_the_base():
    torch.manual_seed(0)
    ebm = EBM((2,), hidden=(16,), base_scale=1.5).double()
    with torch.no_grad():
        for p in ebm.energy.parameters():
            p.mul_(3.0)
    estimate = AIS(ebm.base(), ebm.distribution(), num_temperatures=60).forward(200, seed=0)
    assert abs(float(estimate) - grid_log_z(ebm, 9.0)) < 4 * float(estimate.standard_error) + 1e-3


def test_temperature_and_base():
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    hot = EBM((3,), hidden=(8,), temperature=2.0)
    cold = EBM((3,), hidden=(8,), temperature=0.5, base=None)
    cold.load_state_dict(hot.state_dict())
    energy = hot.energy(x)
    torch.testing.assert_close(hot.free_energy(x), energy / 2 - hot.base().log_prob(x))
    torch.testing.assert_close(cold.free_energy(x), energy / 0.5)
    assert cold.base() is None


def test_base_from_data():
    x = 3.0 + 0.5 * torch.randn(500, 2, 4)
    ebm = EBM((2, 4))
    ebm.initialize_base(x, widen=2.0)
    torch.testing.assert_close(ebm.base_loc, x.mean(0))
    assert ebm.base_scale.unique().item() == pytest.approx(1.0, rel=0.05)
    assert EBM((2, 4), base_loc=torch.arange(4.0), base_scale=0.3).base_loc[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="x has no spread"):
        ebm.initialize_base(torch.ones(3, 2, 4))
    with pytest.raises(ValueError, match="is for base='normal'"):
        EBM((2, 4), base=None).initialize_base(x)


def test_sampling_by_a_kernel_and_from_data():
    torch.manual_seed(0)
    ebm = EBM((2,), hidden=(8,), kernel=HMC(step_size=0.3))
    draws = [ebm.sample(5, num_steps=10, seed=3) for _ in range(2)]
    assert torch.equal(*draws)
    x = torch.full((5, 2), 40.0)
    near = EBM((2,), hidden=(8,), step_size=0.01).sample(5, num_steps=3, initial=x, seed=0)
    assert (near > 38).all()


def test_own_network_base_and_noise_level():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(()))

        def forward(self, x, sigma):
            return 0.5 * self.a * x.square().sum(-1) / (1 + sigma**2)

    base = dist.Uniform(-torch.ones(2), 1.0).to_event(1)
    ebm = EBM((2,), Net(), base=base, noise_level=0.1)
    config = json.loads(json.dumps(ebm.config()))
    assert (config["network"], config["base"], config["kernel"]) == ("custom", "custom", None)
    given_again = EBM((2,), initial=base, kernel=HMC(step_size=0.2)).config()
    assert (given_again["initial"], given_again["kernel"]) == ("custom", "custom")
    x = ebm.sample(50, num_steps=30, seed=0)
    assert ebm.distribution().support.check(x).all()
    free = EBM((2,), Net(), noise_level=0.1)
    run = pyro_dgm.fit(free, x, objective=DenoisingScoreMatching([0.1, 1.0]), epochs=2, progress=False)
    assert len(run.history["train"]) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EBM((2,), temperature=0.0), "temperature must be positive and finite, got 0"),
        (lambda: EBM((2,), step_size=-1.0), "step_size must be positive and finite, got -1"),
        (lambda: EBM((2,), base_scale=0.0), "base_scale must be positive and finite, got 0"),
        (lambda: EBM((2,), base="cauchy"), "base must be 'normal', None or a distribution, got 'cauchy'"),
        (lambda: EBM((2,), network="unet"), "network must be 'mlp', 'conv' or a module, got 'unet'"),
        (lambda: EBM((2,), base=dist.Normal(torch.zeros(3), 1.0).to_event(1)), "base must have event shape"),
        (lambda: EBM((2,)).check_batch(torch.ones(3, 2, dtype=torch.int64)), "must be floating point"),
        (lambda: EBM((2,)).check_batch(torch.full((3, 2), math.inf)), "6 values that are not finite"),
        (lambda: EBM((2,)).sample(0), "num_samples must be an integer of at least 1"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
