"""K particles at once are K particles alone: values, gradients, state, noise, and what is said where they are not."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_dgm.infer import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    NVIL,
    PIWAE,
    STL,
    TVO,
    VIMCO,
    DReG,
    RenyiELBO,
    ReweightedWakeSleep,
    ScoreFunction,
    TraceGraphELBO,
    VarGrad,
)
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.evaluation.vectorization import strategy_for
from pyro_dgm.programs.base_of import base_of
from pyro_dgm.programs.structure import sample_sites

K, N = 4, 5
WAYS = {"plate": "in a plate", "vmap": "under vmap", "loop": "one after another"}


class Regression(nn.Module):
    """Global weights and a local latent; what is done with the weights decides how particles can be run."""

    def __init__(self, way: str, discrete: bool) -> None:
        super().__init__()
        self.way, self.discrete = way, discrete
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
        self.y = torch.randn(N, generator=generator, dtype=torch.float64)
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.prior = nn.Parameter(torch.tensor([0.1, -0.3], dtype=torch.float64))
        self.loc = nn.Parameter(torch.tensor([0.2, 0.5], dtype=torch.float64))
        self.spread = nn.Parameter(torch.tensor([-0.5, 0.1], dtype=torch.float64))
        self.slope = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def mean(self, w):
        if self.way == "plate":
            return (self.x * w).sum(-1)
        if self.way == "loop" and w.sum().item() == 1e9:
            raise AssertionError
        return self.x @ w

    def local(self, logits):
        return dist.Bernoulli(logits=logits) if self.discrete else dist.Normal(logits, 0.8)

    def model(self):
        w = pyro.sample("w", dist.Normal(self.prior, 1.0).to_event(1))
        with pyro.plate("data", N):
            u = pyro.sample("u", self.local(torch.zeros_like(self.y)))
            pyro.sample("y", dist.Normal(self.mean(w) + u, self.scale), obs=self.y)

    def guide(self):
        w = pyro.sample("w", dist.Normal(self.loc, self.spread.exp()).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("u", self.local(self.slope * self.y + 0.1 * self.mean(w).detach()))


class SameNoise(Messenger):
    """Gives the runs of single particles, in turn, the noise that gave all particles their values."""

    def __init__(self, values):
        super().__init__()
        self.values = {name: list(value) for name, value in values.items()}

    def _pyro_sample(self, msg):
        if msg["done"] or msg["is_observed"] or msg["name"] not in self.values:
            return
        value, fn = self.values[msg["name"]].pop(0), msg["fn"]
        if fn.has_rsample and msg["value"] is None:  # else a handler of the objective's has cut the sample
            base = base_of(fn)
            value = base.loc + base.scale * ((value - base.loc) / base.scale).detach()
        msg["value"] = value


def gradients(loss, program):
    return torch.autograd.grad(loss, list(program.parameters()), allow_unused=True, materialize_grads=True)


def way_of(model, guide, *args, num_particles=K):
    pair = Pair(model, guide, args, {}, ELBO().structure(model, guide, args, {}))
    return strategy_for(pair, num_particles)


ANY = [ELBO, STL, IWAE, MIWAE, PIWAE, RenyiELBO, CUBO, CIWAE, TVO, VarGrad, VIMCO, ScoreFunction, TraceGraphELBO]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "discrete"),
    [*((kind, discrete) for kind in [*ANY, ReweightedWakeSleep] for discrete in (False, True)), (DReG, False)],
    ids=lambda v: v.__name__ if isinstance(v, type) else {True: "discrete", False: "smooth"}[v],
)
def test_values_and_gradients_are_those_of_single_runs(kind, discrete, way):
    program = Regression(way, discrete)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert way_of(program.model, program.guide).kind.name == WAYS[way]
        together, alone = kind(num_particles=K), kind(num_particles=K, vectorize_particles=False)
        together.loss(program.model, program.guide)
        torch.manual_seed(11)
        loss = together.differentiable_loss(program.model, program.guide)
        torch.manual_seed(11)
        pairs = together.particles(program.model, program.guide, (), {}).pairs
    assert len(pairs) == (K if way == "loop" or (way == "vmap" and not kind.under_vmap) else 1)
    guides = [sample_sites(guide) for _, guide in pairs]
    values = {
        name: torch.cat([g[name]["value"].detach().reshape(-1, *shape) for g in guides])
        for name, shape in (("w", (2,)), ("u", (N,)))
    }
    with SameNoise(values):
        expected = alone.differentiable_loss(program.model, program.guide)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(gradients(loss, program), gradients(expected, program), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_learned_baselines_see_the_data_under_vmap():
    program = Regression("vmap", discrete=True)
    objective = NVIL(num_particles=K)
    gradients(objective.differentiable_loss(program.model, program.guide), program)
    assert objective.learned is not None
