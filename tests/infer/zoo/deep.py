"""Deep generative models: autoencoders of several kinds, networks with state, structure that depends on draws."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_coupling
from pyro.infer import config_enumerate
from torch import Tensor, nn
from torch.distributions import constraints

from tests.infer.zoo.case import case, coins, normal

IMAGES, LABELS = coins(5, 6), torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])]


class Autoencoder(nn.Module):
    """A variational autoencoder of bits, whose networks are arguments."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: int = 2) -> None:
        super().__init__()
        self.encoder, self.decoder, self.latent = encoder, decoder, latent

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def autoencoder(encoder: nn.Module, decoder: nn.Module) -> Any:
    vae = Autoencoder(encoder, decoder)
    return vae.model, vae.guide, (IMAGES,)


@case()
def vae() -> Any:
    return autoencoder(nn.Linear(6, 4), nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 6)))


@case()
def batch_norm_encoder() -> Any:
    return autoencoder(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), nn.Linear(2, 6))


@case("loop")
def batch_norm_decoder() -> Any:
    return autoencoder(nn.Linear(6, 4), nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6)))


@case("vmap")
def batch_norm_evaluated() -> Any:
    model, guide, args = autoencoder(nn.Linear(6, 4), nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6)))
    model.__self__.eval()
    return model, guide, args


@case("vmap", replays=False)
def dropout() -> Any:
    return autoencoder(nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 4)), nn.Linear(2, 6))


@case("vmap")
def rows_mixed() -> Any:
    class Flat(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.view(z.shape[0], -1).repeat(1, 3)

    return autoencoder(nn.Linear(6, 4), nn.Sequential(Flat(), nn.Linear(6, 6)))


@case("vmap")
def convolutional() -> Any:
    decoder = nn.Sequential(nn.Unflatten(1, (2, 1)), nn.ConvTranspose1d(2, 1, 6), nn.Flatten(1))
    return autoencoder(nn.Linear(6, 4), decoder)


@case("vmap")
def conditional_vae() -> Any:
    encoder, prior, decoder = nn.Linear(9, 4), nn.Linear(3, 4), nn.Linear(5, 6)

    def normal_of(out: Tensor) -> Any:
        loc, log_scale = out.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("prior", prior), pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal_of(prior(y)))
            pyro.sample("x", dist.Bernoulli(logits=decoder(torch.cat([z, y], dim=1))).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal_of(encoder(torch.cat([x, y], dim=1))))

    return model, guide, (IMAGES, LABELS)


@case(enumerates="guide")
def semi_supervised_vae() -> Any:
    classifier, encoder, decoder = nn.Linear(6, 3), nn.Linear(9, 4), nn.Linear(5, 6)

    def joined(*parts: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
        return torch.cat([p.expand(*shape, p.shape[-1]) for p in parts], -1)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=decoder(joined(z, y))).to_event(1), obs=x)

    @config_enumerate
    def guide(x: Tensor) -> None:
        pyro.module("classifier", classifier), pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(x)))
            loc, log_scale = encoder(joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, (IMAGES,)


@case(enumerates="guide")
def cells_with_labels() -> Any:
    """Counts of genes, some cells with labels: negative binomial, latent library sizes, labels summed out."""
    encoder, library, decoder = nn.Linear(6, 4), nn.Linear(6, 2), nn.Linear(5, 6)
    classifier = nn.Linear(2, 3)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        theta = pyro.param("theta", torch.ones(6), constraint=constraints.positive)
        with pyro.plate("cells", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
            size = pyro.sample("size", dist.LogNormal(torch.ones(1), 1.0).to_event(1))
            shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
            both = torch.cat([z.expand(*shape, 2), y.expand(*shape, 3)], -1)
            mean = size * decoder(both).softmax(-1)
            pyro.sample("x", dist.NegativeBinomial(theta, logits=(mean / theta).log()).to_event(1), obs=x)

    @config_enumerate
    def guide(x: Tensor) -> None:
        for name, net in (("encoder", encoder), ("library", library), ("classifier", classifier)):
            pyro.module(name, net)
        with pyro.plate("cells", len(x)):
            loc, log_scale = encoder(x.log1p()).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("y", dist.OneHotCategorical(logits=classifier(z)))
            loc, log_scale = library(x.log1p()).chunk(2, -1)
            pyro.sample("size", dist.LogNormal(loc, log_scale.exp()).to_event(1))

    return model, guide, (torch.poisson(3 * IMAGES + 1, generator=torch.Generator().manual_seed(0)),)


@case()
def objects_by_presence() -> Any:
    """Attend, infer, repeat: objects are there until one is not, each masked by a draw."""
    where, decoder = nn.Linear(6, 2 * 3 + 3), nn.Linear(2, 6)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            here, canvas = torch.ones(len(x)), torch.zeros(6)
            for t in range(3):
                here = pyro.sample(f"here_{t}", dist.Bernoulli(0.4 * here))
                with poutine.mask(mask=here.bool()):
                    what = pyro.sample(f"what_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                canvas = canvas + here.unsqueeze(-1) * decoder(what)
            pyro.sample("x", dist.Normal(canvas, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("where", where)
        out = where(x)
        with pyro.plate("data", len(x)):
            here = torch.ones(len(x))
            for t in range(3):
                here = pyro.sample(f"here_{t}", dist.Bernoulli(out[:, 6 + t].sigmoid() * here))
                with poutine.mask(mask=here.bool()):
                    pyro.sample(f"what_{t}", dist.Normal(out[:, 2 * t : 2 * t + 2], 1.0).to_event(1))

    return model, guide, (IMAGES,)


@case("loop", records=False, draws=False)
def random_recursion() -> Any:
    """As many sites as a draw says."""

    def model(x: Tensor) -> None:
        total, t = torch.zeros(()), 0
        while t < 4 and bool(pyro.sample(f"more_{t}", dist.Bernoulli(0.6)) == 1):
            total = total + pyro.sample(f"part_{t}", dist.Normal(1.0, 1.0))
            t += 1
        pyro.sample("x", dist.Normal(total, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        loc, t = pyro.param("loc", torch.tensor(1.0)), 0
        while t < 4 and bool(pyro.sample(f"more_{t}", dist.Bernoulli(p)) == 1):
            pyro.sample(f"part_{t}", dist.Normal(loc, 1.0))
            t += 1

    return model, guide, (torch.tensor(1.5),)


@case("vmap")
def deep_exponential_family() -> Any:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Gamma(torch.full((2, 6), 0.5), 0.3).to_event(2))
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Gamma(torch.full((2,), 0.5), 0.5).to_event(1))
            pyro.sample("x", dist.Poisson(torch.matmul(top, w)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        def gamma(name: str, *shape: int) -> Any:
            a = pyro.param(f"{name}_a", torch.ones(shape), constraint=constraints.positive)
            b = pyro.param(f"{name}_b", torch.ones(shape), constraint=constraints.positive)
            return dist.Gamma(a, b)

        with pyro.plate("data", len(x)):
            pyro.sample("top", gamma("top", len(x), 2).to_event(1))
        pyro.sample("w", gamma("w", 2, 6).to_event(2))

    return model, guide, (IMAGES,)


@case()
def flow_guide() -> Any:
    torch.manual_seed(0)
    coupling, decoder = affine_coupling(2, [4]), nn.Linear(2, 6)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("coupling", coupling)
        loc = pyro.param("loc", lambda: normal(2))
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(loc, torch.ones(2)), [coupling]))

    return model, guide, (IMAGES,)
