"""Mixtures and topics: the component summed out in the model, in the guide, or drawn."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import autoguide, config_enumerate
from torch import Tensor, nn
from torch.distributions import constraints

from tests.infer.zoo.case import case, coins, normal

POINTS = torch.tensor([-2.0, -1.8, 0.1, 1.9, 2.2, 2.0])


@case("vmap", enumerates="model", draws=False)
def gaussian_mixture() -> Any:
    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model, autoguide.AutoDelta(poutine.block(model, hide=["z"])), (POINTS,)


@case(enumerates="guide")
def toy_mixture() -> Any:
    locs = torch.tensor([-2.0, 0.0, 2.0])

    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.ones(3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(p))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    @config_enumerate
    def guide(x: Tensor) -> None:
        q = pyro.param("q", torch.ones(len(x), 3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(q))

    return model, guide, (POINTS,)


@case()
def drawn_mixture() -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(4.0 * z - 2.0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=slope * x))

    return model, guide, (POINTS,)


@case(enumerates="model", draws=False)
def component_beside_a_latent() -> Any:
    """A component to be summed out, and a latent of each datum that the guide draws."""
    centres = torch.tensor([-1.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + centres[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.4)) * x, 1.0))

    return model, guide, (POINTS,)


@case("vmap", enumerates="model", draws=False)
def bernoulli_mixture() -> Any:
    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        probs = pyro.sample("probs", dist.Beta(1.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)

    return model, autoguide.AutoNormal(poutine.block(model, hide=["z"])), (coins(6, 3),)


@case("vmap", draws=False)
def stick_breaking() -> Any:
    def weights(beta: Tensor) -> Tensor:
        left = (1 - beta).cumprod(-1)
        return torch.cat([beta, torch.ones(1)]) * torch.cat([torch.ones(1), left])

    def model(x: Tensor) -> None:
        with pyro.plate("sticks", 3):
            beta = pyro.sample("beta", dist.Beta(1.0, 1.5))
        with pyro.plate("components", 4):
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights(beta)))
            pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        kappa = pyro.param("kappa", torch.ones(3), constraint=constraints.positive)
        tau = pyro.param("tau", lambda: normal(4))
        phi = pyro.param("phi", torch.ones(len(x), 4) / 4, constraint=constraints.simplex)
        with pyro.plate("sticks", 3):
            pyro.sample("beta", dist.Beta(torch.ones(3), kappa))
        with pyro.plate("components", 4):
            pyro.sample("mu", dist.Normal(tau, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(phi))

    return model, guide, (POINTS,)


WORDS, TOPICS, DOCUMENTS = 6, 2, 4


def topics_model(x: Tensor) -> None:
    with pyro.plate("topics", TOPICS):
        topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / TOPICS, 1.0))
        words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(WORDS) / WORDS))
    with pyro.plate("documents", DOCUMENTS, subsample_size=3) as index:
        doc = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
        with pyro.plate("words", 5):
            z = pyro.sample("word_topics", dist.Categorical(doc), infer={"enumerate": "parallel"})
            pyro.sample("doc_words", dist.Categorical(words[z]), obs=x[:, index])


@case("vmap", enumerates="model", draws=False)
def latent_dirichlet_allocation() -> Any:
    net = nn.Sequential(nn.Linear(WORDS, 4), nn.Sigmoid(), nn.Linear(4, TOPICS), nn.Softmax(-1))

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        a = pyro.param("a", lambda: torch.ones(TOPICS), constraint=constraints.positive)
        b = pyro.param("b", lambda: 1.0 + torch.rand(TOPICS, WORDS), constraint=constraints.positive)
        with pyro.plate("topics", TOPICS):
            pyro.sample("topic_weights", dist.Gamma(a, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(b))
        with pyro.plate("documents", DOCUMENTS, subsample_size=3) as index:
            counts = torch.zeros(WORDS, len(index)).scatter_add(0, x[:, index], torch.ones(5, len(index)))
            pyro.sample("doc_topics", dist.Delta(net(counts.t()), event_dim=1))

    words = (normal(5, DOCUMENTS).abs() * 3).long().clamp(max=WORDS - 1)
    return topics_model, guide, (words,)


@case("vmap", draws=False)
def topics_by_counts() -> Any:
    """A product of experts, whose decoder normalises over the words."""
    encoder, decoder = nn.Linear(WORDS, 4), nn.Linear(TOPICS, WORDS, bias=False)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("documents", len(x)):
            logit = pyro.sample("logit", dist.Normal(torch.zeros(TOPICS), 1.0).to_event(1))
            probs = decoder(logit.softmax(1)).softmax(1)
            pyro.sample("x", dist.Multinomial(5, probs), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("documents", len(x)):
            pyro.sample("logit", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, (torch.eye(WORDS)[:4] * 3 + torch.eye(WORDS)[1:5] * 2,)
