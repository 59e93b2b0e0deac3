"""A sigmoid belief network of 8 binary latents, whose bounds and gradients are sums over 256 states."""

import math

import pyro
import pyro.distributions as dist
import torch

from tests.infer.objectives.bounds.exact import DTYPE

LATENTS, OBSERVED, DATA = 8, 3, 2


class SigmoidBeliefNetwork(torch.nn.Module):
    """Eight binary causes of three binary observations; the guide is one layer of logistic regressions.

    ``kind``: "bernoulli"; or "onehot"/"categorical", where one variable of eight values takes the place of the causes.
    """

    def __init__(self, kind="bernoulli"):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.kind = kind
        self.x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], dtype=DTYPE)
        sizes = {
            "prior": (LATENTS,),
            "weight": (LATENTS, OBSERVED),
            "bias": (OBSERVED,),
            "guide_weight": (OBSERVED, LATENTS),
            "guide_bias": (LATENTS,),
        }
        for name, size in sizes.items():
            value = torch.randn(size, generator=generator, dtype=DTYPE)
            setattr(self, name, torch.nn.Parameter(value))

    def latent(self, logits):
        if self.kind == "bernoulli":
            return dist.Bernoulli(logits=logits).to_event(1)
        return (dist.OneHotCategorical if self.kind == "onehot" else dist.Categorical)(logits=logits)

    def observation(self, z):
        return dist.Bernoulli(logits=z @ self.weight + self.bias).to_event(1)

    def model(self):
        with pyro.plate("data", DATA):
            z = pyro.sample("z", self.latent(self.prior))
            if self.kind == "categorical":
                z = torch.eye(LATENTS, dtype=DTYPE)[z]
            pyro.sample("x", self.observation(z), obs=self.x)

    def guide(self):
        with pyro.plate("data", DATA):
            pyro.sample("z", self.latent(self.x @ self.guide_weight + self.guide_bias))

    def terms(self):
        """log p and log q of every state, ``(states, data)``."""
        if self.kind == "bernoulli":
            bits = torch.arange(2**LATENTS)
            states = ((bits[:, None] >> torch.arange(LATENTS)) & 1).to(DTYPE)[:, None]
        else:
            states = torch.eye(LATENTS, dtype=DTYPE)[:, None]
        values = states.argmax(-1) if self.kind == "categorical" else states
        log_q = self.latent(self.x @ self.guide_weight + self.guide_bias).log_prob(values)
        log_p = self.latent(self.prior).log_prob(values) + self.observation(states).log_prob(self.x)
        return log_p, log_q

    def bound(self, num_particles=1, alpha=0.0):
        """Exact expected bound, summed over the data."""
        log_p, log_q = self.terms()
        log_w, total = (1 - alpha) * (log_p - log_q), log_q
        if num_particles == 2:
            log_w = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
            total = log_q[:, None] + log_q[None]
        return (total.exp() * log_w / (1 - alpha)).sum()

    def pairs(self):
        """Probability, log-weights ``(states, states, 2, data)`` and log-densities of all pairs of states."""
        log_p, log_q = self.terms()

        def pair(values):
            return torch.stack(torch.broadcast_tensors(values[:, None], values[None]), 2)

        log_q, log_w = pair(log_q), pair(log_p - log_q)
        return log_q.sum(2).exp(), log_w, log_q


def replicated(net, replicates):
    def repeat(fn):
        def run():
            with pyro.plate("replicates", replicates, dim=-2):
                fn()

        return run

    return repeat(net.model), repeat(net.guide)


def draws(net, objective, count, replicates):
    """Bound and gradients, a row a batch of replicates."""
    model, guide = replicated(net, replicates)
    rows = []
    for _ in range(count):
        loss = objective.differentiable_loss(model, guide)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        rows.append(torch.cat([loss.detach()[None], *(g.flatten() for g in grads)]) / -replicates)
    return torch.stack(rows)


def train(net, objective, steps=150, replicates=20, lr=0.02):
    """Train the objective's own networks; the program stays."""
    model, guide = replicated(net, replicates)
    objective.structure(model, guide, (), {})
    optimizer = torch.optim.Adam(objective.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.differentiable_loss(model, guide).backward()
        optimizer.step()
    net.zero_grad()
    return objective
