"""Time series: state spaces, forecasts, epidemics, survival, alignment."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import autoguide
from torch import Tensor, nn
from torch.distributions import constraints

from tests.infer.zoo.case import case, coins, normal

SERIES = normal(6).cumsum(0)


@case()
def local_level_loop() -> Any:
    def model(y: Tensor) -> None:
        drift = pyro.sample("drift", dist.HalfNormal(1.0))
        level: Any = 0.0
        for t in pyro.markov(range(len(y))):
            level = pyro.sample(f"level_{t}", dist.Normal(level, drift))
            pyro.sample(f"y_{t}", dist.Normal(level, 0.5), obs=y[t])

    return model, autoguide.AutoNormal(model), (SERIES,)


@case("vmap")
def random_walk_in_one() -> Any:
    """A forecaster: increments in one site, summed along time."""

    def model(y: Tensor, covariates: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 0.5).to_event(1))
        drift = pyro.sample("drift", dist.LogNormal(-1.0, 1.0))
        with pyro.plate("time", len(y), dim=-1):
            step = pyro.sample("step", dist.Normal(0.0, drift))
        level = step.cumsum(0) + (covariates * weight).sum(-1)
        pyro.sample("y", dist.StudentT(4.0, level, 0.5).to_event(1), obs=y)

    return model, autoguide.AutoNormal(model), (SERIES, normal(6, 2, seed=3))


@case("vmap")
def kalman_filter() -> Any:
    def model(y: Tensor) -> None:
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
        eye = torch.eye(2)
        start = dist.MultivariateNormal(torch.zeros(2), eye)
        moves = dist.MultivariateNormal(torch.zeros(2), 0.1 * eye)
        seen = dist.MultivariateNormal(torch.zeros(1), scale_tril=noise * torch.eye(1))
        turn = torch.tensor([[0.9, 0.1], [-0.1, 0.9]])
        pyro.sample("y", dist.GaussianHMM(start, turn, moves, eye[:, :1], seen, duration=len(y)), obs=y.unsqueeze(-1))

    return model, autoguide.AutoNormal(model), (SERIES,)


@case("vmap")
def vector_autoregression() -> Any:
    def model(y: Tensor) -> None:
        move = pyro.sample("move", dist.Normal(0.5 * torch.eye(2), 0.3).to_event(2))
        with pyro.plate("time", len(y) - 1):
            mean = torch.stack([move @ row for row in y[:-1]])
            pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=y[1:])

    return model, autoguide.AutoNormal(model), (normal(5, 2),)


class Gate(nn.Module):
    """Mean and log scale of the next state."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 5), nn.ReLU(), nn.Linear(5, 2 * outputs))

    def forward(self, *parts: Tensor) -> Any:
        loc, log_scale = self.net(torch.cat(parts, -1)).chunk(2, -1)
        return loc, log_scale.exp()


@case("vmap")
def deep_markov_model() -> Any:
    move, emit, combine = Gate(2, 2), nn.Linear(2, 4), Gate(2 + 3, 2)
    rnn, start = nn.RNN(4, 3, batch_first=True), nn.Parameter(torch.zeros(2))

    def model(x: Tensor, mask: Tensor) -> None:
        for name, net in (("move", move), ("emit", emit)):
            pyro.module(name, net)
        z = start.expand(len(x), 2)
        with pyro.plate("tunes", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, scale = move(z)
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=emit(z)).to_event(1), obs=x[:, t])

    def guide(x: Tensor, mask: Tensor) -> None:
        for name, net in (("combine", combine), ("rnn", rnn)):
            pyro.module(name, net)
        seen = rnn(x.flip(1))[0].flip(1)
        z = torch.zeros(len(x), 2)
        with pyro.plate("tunes", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, scale = combine(z, seen[:, t])
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).to_event(1))

    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    return model, guide, (coins(3, 3, 4), mask)


@case()
def epidemic() -> Any:
    cases = torch.tensor([2.0, 3, 7, 11, 20])

    def model(cases: Tensor) -> None:
        rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5))
        seen = pyro.sample("seen", dist.Beta(10.0, 10.0))
        infected, susceptible = torch.tensor(3.0), torch.tensor(100.0)
        for t in pyro.markov(range(len(cases))):
            mean = rate * infected * susceptible / 100
            new = pyro.sample(f"new_{t}", dist.LogNormal(mean.log(), 0.3))
            susceptible = (susceptible - new).clamp(min=1.0)
            infected = 0.6 * infected + new
            pyro.sample(f"cases_{t}", dist.Poisson(seen * new), obs=cases[t])

    return model, autoguide.AutoNormal(model), (cases,)


@case(enumerates="model", draws=False)
def capture_recapture() -> Any:
    def model(caught: Tensor) -> None:
        survives = pyro.sample("survives", dist.Uniform(0.0, 1.0))
        seen = pyro.sample("seen", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", len(caught), dim=-1):
            alive = torch.ones(len(caught))
            first = torch.zeros(len(caught)).bool()
            for t in pyro.markov(range(caught.shape[1])):
                with poutine.mask(mask=first):
                    alive = pyro.sample(f"z_{t}", dist.Bernoulli(survives * alive), infer={"enumerate": "parallel"})
                    pyro.sample(f"y_{t}", dist.Bernoulli(seen * alive), obs=caught[:, t])
                first = first | caught[:, t].bool()

    guide = autoguide.AutoDiagonalNormal(poutine.block(model, expose=["survives", "seen"]))
    return model, guide, (coins(5, 3, p=0.6),)


@case("vmap")
def aligned_sequences() -> Any:
    """Sequences that are a noisy, gapped copy of a latent one: a hidden Markov model over its places."""

    def model(x: Tensor) -> None:
        letters = pyro.sample("letters", dist.Dirichlet(torch.ones(3, 4)).to_event(1))
        gap = pyro.sample("gap", dist.Normal(torch.tensor(-1.0), 1.0))
        ahead = torch.eye(3).roll(1, 1) + torch.eye(3) * gap.exp()
        start = torch.tensor([0.8, 0.1, 0.1]).log()
        with pyro.plate("sequences", len(x)):
            emitted = dist.OneHotCategorical(probs=letters)
            pyro.sample("x", dist.DiscreteHMM(start, (ahead + 1e-3).log(), emitted, duration=x.shape[1]), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", lambda: 1.0 + torch.rand(3, 4), constraint=constraints.positive)
        pyro.sample("letters", dist.Dirichlet(a).to_event(1))
        pyro.sample("gap", dist.Normal(pyro.param("loc", torch.tensor(-1.0)), 0.3))

    return model, guide, (torch.eye(4)[(normal(3, 5).abs() * 2).long().clamp(max=3)],)
