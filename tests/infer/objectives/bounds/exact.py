"""Exact answers for objectives: quadrature of importance weighted bounds, and linear-Gaussian programs with plates.

The bound of K particles is :math:`E \\log S_K - \\log K` with :math:`S_K` a sum of K independent weights.  From
:math:`\\log S = \\int_0^\\infty (e^{-t} - e^{-tS}) dt / t` and independence,

    E log S_K = int (exp(-e^u) - phi(e^u)^K) du,    phi(t) = E exp(-t w),

two one-dimensional integrals of smooth functions for any K, which autograd differentiates.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch

DTYPE = torch.float64


def normal_log_prob(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def expected_renyi(log_weight, num_particles, alpha=0.0):
    """Bound of each datum for a one-dimensional latent: ``log_weight(eps)`` maps ``(n,)`` to ``(data, n)``."""
    eps = torch.linspace(-9.5, 9.5, 1201, dtype=DTYPE)
    mass = torch.softmax(-0.5 * eps**2, 0)  # trapezoid rule, normalised; exact to rounding for smooth integrands
    log_w = (1 - alpha) * log_weight(eps)
    if num_particles == 1:
        return (mass * log_w).sum(-1) / (1 - alpha)
    shift = log_w.detach().amax(-1, keepdim=True)
    log_w = log_w - shift
    u = torch.linspace(-36.0, 110.0, 1461, dtype=DTYPE)
    step = u[1] - u[0]
    rows = []
    for row in log_w:
        phi = (mass * torch.exp(-torch.exp((u[:, None] + row).clamp(max=6.0)))).sum(-1)
        rows.append(step * (torch.exp(-torch.exp(u.clamp(max=6.0))) - phi**num_particles).sum())
    return (torch.stack(rows) + shift.squeeze(-1) - math.log(num_particles)) / (1 - alpha)


class Toy(torch.nn.Module):
    """One scalar latent a group, ``members`` observed scalars a group, everything Gaussian; affine guide.

    ``layout``: "flat" (one plate), "subsampled" (10 of 50 groups), "nested" (groups x members in two plates, the
    latent in the outer one) or "inner" (a latent for each member, in both plates).
    """

    def __init__(self, layout: str, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layout = layout
        self.indices = None  # set to choose the subsample by hand
        groups = {"flat": 4, "subsampled": 50, "nested": 3, "inner": 2}[layout]
        self.groups, self.members = groups, 3 if layout in ("nested", "inner") else 1
        self.x = torch.randn(groups, self.members, generator=generator, dtype=DTYPE) * 1.5
        for name, value in {"w": 1.2, "b": 0.3, "log_s": -0.4, "a": 0.4, "c": -0.2, "log_t": -0.5}.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value, dtype=DTYPE)))

    @property
    def subsample(self):
        return 10 if self.layout == "subsampled" else self.groups

    def plates(self):
        size = None if self.indices is not None else self.subsample
        groups = pyro.plate("groups", self.groups, subsample_size=size, subsample=self.indices, dim=-2)
        return groups, pyro.plate("members", self.members, dim=-1)

    def model(self):
        groups, members = self.plates()
        zero, one = torch.zeros((), dtype=DTYPE), torch.ones((), dtype=DTYPE)
        with groups as i:
            x = self.x[i]
            if self.layout == "inner":
                with members:
                    z = pyro.sample("z", dist.Normal(zero, one))
                    pyro.sample("x", dist.Normal(self.w * z + self.b, self.log_s.exp()), obs=x)
            else:
                z = pyro.sample("z", dist.Normal(zero, one))
                with members:
                    pyro.sample("x", dist.Normal(self.w * z + self.b, self.log_s.exp()), obs=x)

    def guide(self):
        groups, members = self.plates()
        with groups as i:
            x = self.x[i]
            if self.layout == "inner":
                with members:
                    pyro.sample("z", dist.Normal(self.a * x + self.c, self.log_t.exp()))
            else:
                pyro.sample("z", dist.Normal(self.a * x.mean(-1, keepdim=True) + self.c, self.log_t.exp()))

    @property
    def data(self):
        """Observations of each datum, ``(data, observations)``."""
        return self.x.reshape(-1, 1) if self.layout == "inner" else self.x

    def log_weight(self, eps):
        x = self.data
        z = self.a * x.mean(-1, keepdim=True) + self.c + self.log_t.exp() * eps
        one = torch.ones((), dtype=DTYPE)
        log_lik = normal_log_prob(x[..., None], self.w * z[:, None] + self.b, self.log_s.exp()).sum(1)
        return log_lik + normal_log_prob(z, 0.0, one) - normal_log_prob(eps, 0.0, one) + self.log_t

    def bound(self, num_particles, alpha=0.0):
        """Exact bound of each datum, nats."""
        return expected_renyi(self.log_weight, num_particles, alpha)

    def log_marginal(self):
        """Exact log p(x) of each datum, nats."""
        x, m = self.data, self.data.shape[-1]
        cov = self.w**2 * torch.ones(m, m, dtype=DTYPE) + (2 * self.log_s).exp() * torch.eye(m, dtype=DTYPE)
        return dist.MultivariateNormal(self.b.expand(m), cov).log_prob(x)
