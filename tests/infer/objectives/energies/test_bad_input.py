"""What every objective for energies does with numbers that are not finite, and data that do not fit: names them."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_dgm
from pyro_dgm.distributions import EnergyDistribution, RBMDistribution, ReplayBuffer
from pyro_dgm.infer import (
    ELBO,
    IWAE,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastive,
    NonFiniteLossError,
    PersistentCD,
    ScoreMatching,
    ShortRunML,
    SlicedScoreMatching,
)
from pyro_dgm.infer.mcmc import HMC
from pyro_dgm.models import DBM, EBM, RBM, BoltzmannMachine, LatentEBM
from tests.infer.objectives.energies.gaussian import F64, Program, Quadratic

OBSERVED = {
    "CD": lambda: ContrastiveDivergence(2),
    "PCD": lambda: PersistentCD(2, num_chains=20),
    "PCD, buffer": lambda: PersistentCD(2, num_chains=20, buffer=40, reinit=0.1),
    "SM": ScoreMatching,
    "SSM": SlicedScoreMatching,
    "DSM": lambda: DenoisingScoreMatching(0.1),
    "NCE": lambda: NoiseContrastive(noise=dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)),
}
WHERE = r"(the energy at site 'x' is {} at \d+ of \d+ (data|noisy data|noise draws|negative samples)|EnergyDistribution: the energy is {} at \d+ of \d+ chains)"  # noqa: E501
observed = pytest.mark.parametrize("make", OBSERVED.values(), ids=OBSERVED.keys())
bad_energies = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf"])


class Spoilt(Quadratic):
    """A quadratic energy that is some other number where the first coordinate is above a threshold."""

    def __init__(self, bad, threshold=-math.inf):
        super().__init__(torch.eye(2, dtype=F64))
        self.bad, self.threshold = bad, threshold

    def forward(self, x):
        return torch.where(x[:, 0] > self.threshold, self.bad, super().forward(x))


def untouched(program):
    return all(p.grad is None for p in program.parameters())


@observed
@bad_energies
def test_energies_that_are_not_finite_are_named_and_leave_no_gradient(make, bad):
    program = Program(Spoilt(bad))
    with pytest.raises(ValueError, match=WHERE.format(bad, bad)):
        make()(program.model, program.guide)(torch.randn(20, 2, dtype=F64)).backward()
    assert untouched(program)


@observed
@bad_energies
def test_one_bad_datum_of_many_is_enough(make, bad):
    program, x = Program(Spoilt(bad, threshold=50.0)), torch.randn(20, 2, dtype=F64)
    x[7] = 60.0
    with pytest.raises(ValueError, match=WHERE.format(bad, bad)):
        make()(program.model, program.guide)(x)
    x[7] = 0.0
    assert math.isfinite(make()(program.model, program.guide)(x).item())


@observed
def test_a_datum_that_is_nan_is_named(make):
    program, x = Program(Quadratic(torch.eye(2, dtype=F64))), torch.randn(20, 2, dtype=F64)
    x[7, 1] = math.nan
    with pytest.raises(ValueError, match=r"site 'x': 1 of 20 data are outside the support .*, or not finite"):
        make()(program.model, program.guide)(x)


@observed
def test_fit_stops_before_the_step_and_says_where(make):
    program, x = Program(Quadratic(torch.eye(2, dtype=F64))), torch.randn(40, 2, dtype=F64)
    seen = []

    def poison(run):
        if run.epochs == 2:
            with torch.no_grad():
                program.energy.linear[0] = math.nan
            seen.append(program.energy.precision.detach().clone())

    with pytest.raises(NonFiniteLossError, match="in epoch 3 at step 1"):
        pyro_dgm.fit(program, x, objective=make(), epochs=5, batch_size=20, callbacks=[poison], progress=False, seed=0)
    assert torch.equal(program.energy.precision, seen[0])


@observed
def test_pyros_svi_stops_too(make):
    ebm, x = EBM((2,), hidden=(4,)).double(), torch.randn(20, 2, dtype=F64)
    svi = SVI(ebm.model, ebm.guide, pyro.optim.Adam({"lr": 0.01}), make())
    svi.step(x)
    with torch.no_grad():
        ebm.energy.layers[0].weight[0, 0] = math.nan
    before = ebm.energy.layers[2].weight.detach().clone()
    with pytest.raises(ValueError, match="nan"):
        svi.step(x)
    assert torch.equal(ebm.energy.layers[2].weight, before)


class Latent(nn.Module):
    """A prior of an energy that is spoilt, or a decoder that is."""

    def __init__(self, bad_energy=0.0, bad_mean=0.0):
        super().__init__()
        self.weight, self.bad_mean = nn.Parameter(torch.ones((), dtype=F64)), bad_mean
        self.bad_energy = bad_energy

    def model(self, x):
        base = dist.Normal(torch.zeros(1, dtype=F64), 1.0, validate_args=False).to_event(1)
        prior = EnergyDistribution(
            lambda z: self.weight * z[:, 0] + self.bad_energy, base=base, num_steps=2, validate_args=False
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(self.weight * z + self.bad_mean, 1.0, validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        pass


@pytest.mark.parametrize("kernel", [None, HMC(step_size=0.1)], ids=["langevin", "hmc"])
@bad_energies
def test_short_run_maximum_likelihood_names_a_bad_prior_and_a_bad_decoder(bad, kernel):
    x = torch.randn(6, 1, dtype=F64)
    for program in (Latent(bad_energy=bad), Latent(bad_mean=bad)):
        with pytest.raises(ValueError, match=r"chains for the posterior of 'z': the energy is .* at 6 of 6 chains"):
            ShortRunML(2, kernel=kernel)(program.model, program.guide)(x).backward()
        assert untouched(program)
    assert math.isfinite(ShortRunML(2, kernel=kernel)(Latent().model, Latent().guide)(x).item())


@pytest.mark.parametrize("kernel", [None, HMC(step_size=0.1)], ids=["langevin", "hmc"])
@bad_energies
def test_sampling_names_them_and_keeps_the_buffer_clean(bad, kernel):
    buffer = ReplayBuffer(50, (2,))
    law = EnergyDistribution(Spoilt(bad, threshold=1e-3), (2,), kernel=kernel, num_steps=2, buffer=buffer)
    with pytest.raises(ValueError, match=rf"EnergyDistribution: the energy is {bad} at \d+ of 30 chains"):
        law.sample((30,))
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        buffer.draw(3)


def test_chains_of_persistent_cd_are_not_kept_where_they_are_not_finite():
    program, pcd, x = Program(Spoilt(math.nan, 50.0)), PersistentCD(2, num_chains=20), torch.randn(20, 2, dtype=F64)
    module = pcd(program.model, program.guide)
    module(x)
    held = pcd.chains.clone()
    program.energy.threshold = -math.inf
    with pytest.raises(ValueError, match="nan"):
        module(x)
    assert torch.equal(pcd.chains, held)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: EnergyDistribution(torch.sum, (2,), temperature=t),
        lambda t: EBM((2,), temperature=t),
        lambda t: LatentEBM((2,), temperature=t),
        lambda t: HMC(temperature=t),
    ],
    ids=["EnergyDistribution", "EBM", "LatentEBM", "HMC"],
)
def test_temperatures_that_are_none_are_named(make, temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        make(temperature)


HALF = torch.full((8, 4), 0.5)


@pytest.mark.parametrize("objective", [ContrastiveDivergence(), PersistentCD()], ids=["CD", "PCD"])
@pytest.mark.parametrize("machine", [lambda: RBM(4, 2), lambda: DBM(4, (2, 2)), lambda: BoltzmannMachine(4)],
                         ids=["RBM", "DBM", "BoltzmannMachine"])  # fmt: skip
@pytest.mark.parametrize("value", [0.5, -1.0, math.nan])
def test_visibles_that_are_not_binary_are_named(objective, machine, value):
    model, x = machine(), torch.ones(8, 4)
    x[3, 1] = value
    with pytest.raises(ValueError, match=r"outside \{0, 1\}|1 values? that (is|are) not finite"):
        pyro_dgm.fit(model, x, objective=objective, epochs=1, progress=False)
    with pytest.raises(
        ValueError, match=rf"site 'x': 1 of 8 data are outside the support .* of {type(model.distribution()).__name__}"
    ):
        SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.1}), objective).step(x)
    assert untouched(model)


def test_the_distribution_of_an_rbm_refuses_them_itself():
    law = RBMDistribution(torch.zeros(4, 2), torch.zeros(4), torch.zeros(2), validate_args=True)
    with pytest.raises(ValueError, match=r"Expected value argument .* to be within the support"):
        law.log_prob(HALF)


def test_a_normaliser_that_depends_on_latents_is_refused_by_bounds():
    """A prior over z whose width is a latent too: log Z of the width is missing from any bound."""

    def model(x):
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        z = pyro.sample("z", EnergyDistribution(lambda v: (v.square() / width).sum(-1), (1,), validate_args=False))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("width", dist.LogNormal(torch.zeros(()), 1.0))
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    x = torch.ones(1)
    for objective in (ELBO(), IWAE(5)):
        with pytest.raises(ValueError, match=r"site 'z' \(EnergyDistribution\).*latents \['width'\]"):
            objective(model, guide)(x)
    fixed = pyro.condition(model, {"width": torch.tensor(1.0)})
    loss = ELBO()(fixed, lambda x: pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1)))(x)
    assert torch.isfinite(loss)
