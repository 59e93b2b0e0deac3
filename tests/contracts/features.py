"""Small programs, one for each thing that a Pyro program may do: what every objective must get right, or refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

FEATURES: dict[str, Callable[[], Case]] = {}


@dataclass
class Case:
    """A program with a batch.

    :ivar enumerated: its loss is Pyro's ``TraceEnum_ELBO``'s where the guide's marks are summed.
    :ivar recordable: whether a graph can hold it.
    """

    model: Any
    guide: Any
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    enumerated: bool = False
    recordable: bool = True


def feature(make: Callable[[], Case]) -> Callable[[], Case]:
    FEATURES[make.__name__] = make
    return make


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.get_default_dtype())


def normal(*shape: int, scale: float = 1.0) -> Any:
    return dist.Normal(torch.zeros(shape), torch.full(shape, scale)).to_event(len(shape))


class Amortized(PyroModule):
    """A latent of two dimensions for each datum of four."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 4), nn.Linear(4, 4)
        self.width = PyroParam(torch.tensor(0.8), constraint=constraints.positive)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.width).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


@feature
def amortized() -> Case:
    m = Amortized()
    return Case(m.model, m.guide, (data(5, 4),))


@feature
def single_precision() -> Case:
    m = Amortized().float()
    return Case(m.model, m.guide, (data(5, 4).float(),))


@feature
def keyword_data() -> Case:
    m = Amortized()
    return Case(m.model, m.guide, (), {"x": data(5, 4)})


@feature
def tied_weights() -> Case:
    m = Amortized()
    m.encoder = nn.Linear(2, 4)
    m.encoder.weight = m.decoder.weight

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = m.encoder(x[:, :2]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return Case(m.model, guide, (data(5, 4),))


def _positive(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate * share), obs=x.abs())


@feature
def auto_normal_constrained() -> Case:
    return Case(_positive, autoguide.AutoNormal(_positive), (data(5),))


@feature
def auto_multivariate_normal_constrained() -> Case:
    return Case(_positive, autoguide.AutoMultivariateNormal(_positive), (data(5),))


@feature
def auto_delta() -> Case:
    return Case(_positive, autoguide.AutoDelta(_positive), (data(5),))


@feature
def messenger_guide() -> Case:
    return Case(_positive, autoguide.AutoNormalMessenger(_positive), (data(5),))


def _mixture(x: Tensor) -> None:
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)


@feature
def enumerated_in_the_model() -> Case:
    guide = autoguide.AutoNormal(poutine.block(_mixture, hide=["k"]))
    return Case(_mixture, guide, (data(5),), enumerated=True)


def _switch(marks: dict) -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(2.0 * k - 1.0, pyro.param("s", torch.tensor(1.3))), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=slope * x), infer=marks)

    return Case(model, guide, (data(5),), enumerated=bool(marks))


@feature
def enumerated_in_the_guide() -> Case:
    return _switch({"enumerate": "parallel"})


@feature
def score_function() -> Case:
    return _switch({})


def _local(model_with: Callable[..., Any], guide_with: Callable[..., Any] | None = None) -> Case:
    """A latent for each datum, under handlers that are made of the batch."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), model_with(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, pyro.param("s", torch.tensor(0.6))), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)), (guide_with or model_with)(x):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Case(model, guide, (data(6),))


@feature
def masked() -> Case:
    return _local(lambda x: poutine.mask(mask=x > -0.5))


@feature
def scaled() -> Case:
    return _local(lambda x: poutine.scale(scale=2.5))


@feature
def scaled_by_a_tensor() -> Case:
    return _local(lambda x: poutine.scale(scale=torch.tensor(2.5)))


@feature
def masked_observations() -> Case:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return Case(model, autoguide.AutoNormal(model), (data(6),))


@feature
def one_scaled_site() -> Case:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("data", len(x)), poutine.scale(scale=3.0):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return Case(model, autoguide.AutoNormal(model), (data(6),))


@feature
def subsampled_plate() -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, pyro.param("s", torch.tensor(0.6))), obs=x[rows])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(slope * x[rows], 0.7))

    return Case(model, guide, (data(10),))


@feature
def nested_plates() -> Case:
    def model(x: Tensor) -> None:
        groups, each = pyro.plate("groups", x.shape[1], dim=-1), pyro.plate("each", x.shape[0], dim=-2)
        with groups:
            mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
            with each:
                z = pyro.sample("z", dist.Normal(mu, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("groups", x.shape[1], dim=-1):
            pyro.sample("mu", dist.Normal(slope * x.mean(0), 0.5))
            with pyro.plate("each", x.shape[0], dim=-2):
                pyro.sample("z", dist.Normal(slope * x, 0.6))

    return Case(model, guide, (data(4, 3),))


@feature
def sequential_plate() -> Case:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(mu, 0.5), obs=x[i])

    return Case(model, autoguide.AutoNormal(model), (data(4),))


@feature
def markov_chain() -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("series", x.shape[1]):
            z = torch.zeros(())
            for t in pyro.markov(range(len(x))):
                z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=x[t])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("series", x.shape[1]):
            for t in pyro.markov(range(len(x))):
                pyro.sample(f"z_{t}", dist.Normal(slope * x[t], 0.6))

    return Case(model, guide, (data(3, 4),))


@feature
def reparameterised() -> Case:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 2.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    model = poutine.reparam(model, config={"z": LocScaleReparam(0.0)})
    return Case(model, autoguide.AutoNormal(model), (data(5),))


class Bayesian(PyroModule):
    """A regression whose weights are random."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(torch.zeros(()), 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(torch.zeros(()), 1.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


@feature
def random_network() -> Case:
    model = Bayesian()
    return Case(model, autoguide.AutoNormal(model), (data(6, 3), data(6)))


@feature
def factor_and_deterministic() -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            twice = pyro.deterministic("twice", 2.0 * z)
            pyro.factor("penalty", -0.1 * z.square())
            pyro.sample("x", dist.Normal(twice, pyro.param("s", torch.tensor(0.6))), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Case(model, guide, (data(5),))


@feature
def transformed_latent() -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, pyro.param("s", torch.tensor(0.6))), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(slope * x, 0.7))

    return Case(model, guide, (data(5),))


@feature
def branch_on_data() -> Case:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        scale = 0.5 if float(x.sum()) > 0 else 2.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    return Case(model, autoguide.AutoNormal(model), (data(5),), recordable=False)
