"""Regressions, pooled rates, and Gaussian processes."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from tests.infer.zoo.case import case, coins, normal

X, Y = normal(12, 3), normal(12, seed=1)


@case("vmap")
def linear_regression() -> Any:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w + b, scale), obs=y)

    return model, autoguide.AutoMultivariateNormal(model), (X, Y)


@case("vmap")
def transposed_weights() -> Any:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(1, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x.mm(w.t()).squeeze(-1), 1.0), obs=y)

    return model, autoguide.AutoNormal(model), (X, Y)


@case("vmap", draws=False)
def logistic_regression() -> Any:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("y", dist.Bernoulli(logits=x[index].mv(w)), obs=y[index])

    return model, autoguide.AutoDiagonalNormal(model), (X, coins(12))


@case("vmap", local=True)
def bayesian_network() -> Any:
    class Net(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.first = PyroModule[nn.Linear](3, 4)
            self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
            self.last = PyroModule[nn.Linear](4, 1)
            self.last.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 4]).to_event(2))

        def forward(self, x: Tensor, y: Tensor) -> None:
            mean = self.last(self.first(x).tanh()).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    net = Net()
    return net, autoguide.AutoNormal(net), (X, Y)


@case()
def eight_schools() -> Any:
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])

    def model(sigma: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    model = poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
    return model, autoguide.AutoDiagonalNormal(model), (sigma, y)


@case("vmap")
def groups_by_index() -> Any:
    group = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3])

    def model(group: Tensor, y: Tensor) -> None:
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("groups", 4):
            theta = pyro.sample("theta", dist.Normal(0.0, tau))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)

    return model, autoguide.AutoNormal(model), (group, Y)


@case()
def baseball() -> Any:
    hits = torch.tensor([18.0, 17, 16, 15, 14, 7])

    def model(hits: Tensor) -> None:
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with pyro.plate("players", len(hits)):
            phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            pyro.sample("hits", dist.Binomial(45, phi), obs=hits)

    return model, autoguide.AutoNormal(model), (hits,)


@case()
def biased_coin() -> Any:
    def model(x: Tensor) -> None:
        f = pyro.sample("f", dist.Beta(10.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(f), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(15.0), constraint=constraints.positive)
        b = pyro.param("b", torch.tensor(12.0), constraint=constraints.positive)
        pyro.sample("f", dist.Beta(a, b))

    return model, guide, (coins(10, p=0.7),)


@case()
def weighing() -> Any:
    def model(x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(8.5, 1.0))
        for i in pyro.plate("scales", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(weight, 0.75), obs=x[i])

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(9.0))
        b = pyro.param("b", torch.tensor(0.6), constraint=constraints.positive)
        pyro.sample("weight", dist.Normal(a, b))

    return model, guide, (9.0 + normal(3),)


@case()
def inclined_plane() -> Any:
    def slide(mu: Tensor) -> Tensor:
        time = torch.zeros_like(mu)
        speed, place = torch.zeros_like(mu), torch.zeros_like(mu)
        for _ in range(10):
            speed = speed + 0.2 * (9.8 * 0.3 - 9.8 * mu)
            place = place + 0.2 * speed
            time = time + 0.2 * (place < 2.0)
        return time

    def model(times: Tensor) -> None:
        mu = pyro.sample("mu", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(times)):
            pyro.sample("time", dist.Normal(slide(mu), 0.02), obs=times)

    def guide(times: Tensor) -> None:
        pyro.sample("mu", dist.Beta(pyro.param("a", torch.tensor(2.0)), pyro.param("b", torch.tensor(5.0))))

    return model, guide, (1.0 + 0.02 * normal(4),)


@case("vmap")
def sparse_quadratic_kernel() -> Any:
    def model(x: Tensor, y: Tensor) -> None:
        eta = pyro.sample("eta", dist.HalfNormal(torch.tensor(1.0)))
        scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(3)).to_event(1))
        kx = scale * x
        kernel = eta**2 * (1.0 + kx @ kx.t()) ** 2 + 0.5 * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=y)

    return model, autoguide.AutoNormal(model), (X, Y)


@case("vmap", draws=False)
def gaussian_process() -> Any:
    x, y = torch.linspace(0, 2, 8), normal(8)
    kernel = gp.kernels.RBF(1)
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 0.5))
    kernel.autoguide("lengthscale", dist.Normal)
    process = gp.models.GPRegression(x, y, kernel, noise=torch.tensor(0.5))

    def model() -> Any:
        return process.model()

    return model, process.guide, ()


@case("loop", replays=False)
def sparse_process() -> Any:
    x, y = torch.linspace(0, 2, 8), coins(8)
    process = gp.models.VariationalSparseGP(x, y, gp.kernels.RBF(1), torch.linspace(0, 2, 3), gp.likelihoods.Binary())
    return process.model, process.guide, ()
