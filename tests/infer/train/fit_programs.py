"""Small programs that the tests of training share."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_dgm


def digits_like(n: int = 70, seed: int = 5) -> torch.Tensor:
    """Binary 4 x 4 images with structure: two prototypes under noise."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(2, 4, 4, generator=generator).round()
    which = torch.randint(2, (n,), generator=generator)
    flip = torch.rand(n, 4, 4, generator=generator) < 0.1
    return torch.where(flip, 1 - prototypes[which], prototypes[which])


def small_vae(seed: int = 3) -> pyro_dgm.models.VAE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pyro_dgm.models.VAE(event_shape=(4, 4), latent_dim=2, hidden=(8,))


def mean_model(x: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def auto_program() -> pyro_dgm.Program:
    return pyro_dgm.program(mean_model, AutoNormal(mean_model))


def store_program() -> pyro_dgm.Program:
    """Plain functions whose every parameter is in Pyro's global store, a network among them."""
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(0.5)
        net.bias.fill_(0.1)

    def model(x: torch.Tensor) -> None:
        scale = pyro.param("scale", lambda: 0.5 + torch.rand(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("net", net)
        width = pyro.param("width", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], width))

    return pyro_dgm.program(model, guide)


class NoisyNet(nn.Module):
    """A model and guide on one module with dropout and batch statistics: its own randomness and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4))
        self.decoder = nn.Linear(2, 3)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def noisy_net(seed: int = 4) -> NoisyNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NoisyNet()
