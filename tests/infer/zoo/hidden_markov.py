"""Hidden Markov models whose states are summed out: plain, in mini-batches, autoregressive, factorial, neural."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints

from tests.infer.zoo.case import case, coins

STATES, TONES = 3, 4
TUNES, LENGTHS = coins(5, 4, TONES, p=0.4), torch.tensor([4, 3, 4, 2, 4])
MARGINAL = {"enumerate": "parallel"}


def transitions(name: str = "probs_x", *batch: int, states: int = STATES) -> Tensor:
    rows = dist.Dirichlet(0.8 * torch.eye(states) + 0.2).expand([*batch, states])
    return pyro.sample(name, rows.to_event(1 + len(batch)))


def emissions(*shape: int) -> Tensor:
    return pyro.sample("probs_y", dist.Beta(1.0, 2.0).expand([*shape, TONES]).to_event(len(shape) + 1))


def map_guide(model: Callable[..., Any]) -> AutoDelta:
    return AutoDelta(poutine.block(model, expose_fn=lambda msg: msg["name"].startswith("probs_")))


@case("vmap", enumerates="model", records=False, draws=False)
def hmm_0() -> Any:
    def model(tunes: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions(), emissions(STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        for i in pyro.plate("tunes", len(tunes)):
            x: Any = 0
            for t in pyro.markov(range(int(lengths[i]))):
                x = pyro.sample(f"x_{i}_{t}", dist.Categorical(probs_x[x]), infer=MARGINAL)
                with tones:
                    pyro.sample(f"y_{i}_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=tunes[i, t])

    return model, map_guide(model), (TUNES[:2], LENGTHS[:2])


@case("vmap", enumerates="model", draws=False)
def hmm_1() -> Any:
    def model(tunes: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions(), emissions(STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("tunes", len(tunes), 3, dim=-2) as batch:
            x: Any = 0
            for t in pyro.markov(range(tunes.shape[1])):
                with poutine.mask(mask=(t < lengths[batch]).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=MARGINAL)
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=tunes[batch, t])

    return model, map_guide(model), (TUNES, LENGTHS)


@case("vmap", enumerates="model", draws=False)
def hmm_2() -> Any:
    def model(tunes: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions(), emissions(STATES, 2)
        with pyro.plate("tunes", len(tunes), dim=-2):
            x: Any = 0
            y: Any = 0
            for t in pyro.markov(range(tunes.shape[1])):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=MARGINAL)
                    with pyro.plate(f"tones_{t}", TONES, dim=-1) as tones:
                        y = pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x, y, tones]), obs=tunes[:, t]).long()

    return model, map_guide(model), (TUNES, LENGTHS)


def factorial(depends: bool) -> Any:
    def model(tunes: Tensor, lengths: Tensor) -> None:
        probs_w, probs_y = transitions("probs_w", states=2), emissions(2, 2)
        probs_x = transitions("probs_x", *([2] if depends else []), states=2)
        tones_plate = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("tunes", len(tunes), dim=-2):
            w = x = torch.tensor(0)
            for t in pyro.markov(range(3)):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=MARGINAL)
                    row = Vindex(probs_x)[w, x] if depends else probs_x[x]
                    x = pyro.sample(f"x_{t}", dist.Categorical(row), infer=MARGINAL)
                    with tones_plate as tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[w, x, tones]), obs=tunes[:, t])

    return model, map_guide(model), (TUNES, LENGTHS)


@case("vmap", enumerates="model", draws=False)
def hmm_3() -> Any:
    return factorial(depends=False)


@case("vmap", enumerates="model", draws=False)
def hmm_4() -> Any:
    return factorial(depends=True)


class Tones(nn.Module):
    """Logits of the tones from a state and the tones before."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Linear(STATES, 4)
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.before, self.out = nn.Linear(2 * TONES, 4), nn.Linear(4, TONES)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        one_hot = y.new_zeros((*x.shape[:-1], STATES)).scatter(-1, x, 1.0)
        seen = self.conv(y.reshape(-1, 1, TONES)).relu().reshape(*y.shape[:-1], -1)
        return self.out((self.state(one_hot) + self.before(seen)).relu())


@case("vmap", enumerates="model", draws=False)
def hmm_5() -> Any:
    net = Tones()

    def model(tunes: Tensor, lengths: Tensor) -> None:
        pyro.module("net", net)
        probs_x = transitions()
        with pyro.plate("tunes", len(tunes), dim=-2):
            x: Any = 0
            y = torch.zeros(TONES)
            for t in pyro.markov(range(3)):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=MARGINAL)
                    with pyro.plate(f"tones_{t}", TONES, dim=-1):
                        y = pyro.sample(f"y_{t}", dist.Bernoulli(logits=net(x, y)), obs=tunes[:, t])

    return model, map_guide(model), (TUNES, LENGTHS)


@case(enumerates="model", draws=False)
def hmm_6() -> Any:
    def model(tunes: Tensor, lengths: Tensor) -> None:
        probs_x = pyro.param("px", torch.rand(STATES, STATES, STATES), constraint=constraints.simplex)
        probs_y = pyro.param("py", torch.rand(STATES, TONES), constraint=constraints.unit_interval)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("tunes", len(tunes), dim=-2):
            x, before = torch.tensor(0), torch.tensor(0)
            for t in pyro.markov(range(3), history=2):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    row = Vindex(probs_x)[before, x]
                    before, x = x, pyro.sample(f"x_{t}", dist.Categorical(row), infer=MARGINAL)
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=tunes[:, t])

    return model, lambda tunes, lengths: None, (TUNES, LENGTHS)


@case("vmap")
def hmm_7() -> Any:
    net = nn.Sequential(nn.Linear(TONES, 6), nn.ReLU(), nn.Linear(6, STATES * TONES))

    def model(tunes: Tensor, lengths: Tensor) -> None:
        pyro.module("net", net)
        probs_x = transitions()
        with pyro.plate("tunes", len(tunes), dim=-1):
            logits = net(tunes).unflatten(-1, (STATES, TONES))
            emitted = dist.Bernoulli(logits=logits).to_event(1)
            emitted = emitted.mask((torch.arange(tunes.shape[1]) < lengths.unsqueeze(-1)).unsqueeze(-1))
            start = torch.full((STATES,), -float("inf"))
            start[0] = 0.0
            pyro.sample("y", dist.DiscreteHMM(start, probs_x.log(), emitted), obs=tunes)

    return model, map_guide(model), (TUNES, LENGTHS)
