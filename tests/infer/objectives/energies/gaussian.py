"""A Gaussian energy whose every estimate is known: shared by the tests of the objectives."""

from __future__ import annotations

import math

import pyro
import torch
from torch import nn

from pyro_dgm.distributions import EnergyDistribution

F64 = torch.float64


class Quadratic(nn.Module):
    """E(x) = x' A x / 2 - b' x with A symmetric, a Gaussian of precision A where A is positive definite."""

    def __init__(self, precision, linear=None):
        super().__init__()
        self.precision = nn.Parameter(precision.clone())
        self.linear = nn.Parameter(torch.zeros(len(precision), dtype=precision.dtype) if linear is None else linear)

    @property
    def symmetric(self):
        return 0.5 * (self.precision + self.precision.mT)

    def forward(self, x):
        return 0.5 * ((x @ self.symmetric) * x).sum(-1) - x @ self.linear


class Program(nn.Module):
    """One observed site of a quadratic energy."""

    def __init__(self, energy, temperature=1.0, base=None, **options):
        super().__init__()
        self.energy, self.temperature, self.base, self.options = energy, temperature, base, options

    def distribution(self, dim):
        return EnergyDistribution(
            self.energy, (dim,), self.base, temperature=self.temperature, validate_args=False, **self.options
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.distribution(x.shape[-1]), obs=x)

    def guide(self, x):
        pass


def truth(dim=5, count=50_000, seed=0):
    """A full covariance, its mean, and draws."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=F64) / dim**0.5 + 0.7 * torch.eye(dim, dtype=F64)
    mean = torch.randn(dim, generator=generator, dtype=F64)
    x = mean + torch.randn(count, dim, generator=generator, dtype=F64) @ root.mT
    return mean, root @ root.mT, x


def minimise(objective, program, x, extra=(), iterations=60):
    """By L-BFGS, the random numbers of every evaluation the same."""
    module = objective(program.model, program.guide)
    module(x)  # builds what an objective learns
    optimizer = torch.optim.LBFGS(
        [*program.parameters(), *(p for p in module.parameters() if all(p is not q for q in program.parameters()))],
        max_iter=iterations, history_size=40, line_search_fn="strong_wolfe", tolerance_grad=1e-9,
    )  # fmt: skip

    def closure():
        torch.manual_seed(7)
        optimizer.zero_grad()
        loss = module(x) / len(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    return program.energy


def relative_error(found, exact):
    """Of a matrix, in the Frobenius norm."""
    return float(((found - exact).norm() / exact.norm()).detach())


def gaussian_log_z(precision, linear):
    """Log normaliser of the quadratic energy."""
    quadratic = linear @ torch.linalg.solve(precision, linear)
    return float(0.5 * (len(linear) * math.log(2 * math.pi) - torch.logdet(precision) + quadratic))


def gradients(objective, program, x, count):
    """``count`` gradients per datum of one batch, flat, with random numbers of their own: ``(count, P)``."""
    rows = []
    for i in range(count):
        torch.manual_seed(i)
        program.zero_grad()
        objective(program.model, program.guide)(x).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in program.parameters()]
        rows.append(torch.cat([g.flatten() for g in grads]) / len(x))
    return torch.stack(rows)


def within(rows, exact, errors=4.0):
    """Whether each mean is within so many standard errors of what it estimates."""
    error = rows.std(0) / len(rows) ** 0.5
    return bool(((rows.mean(0) - exact).abs() < errors * error + 1e-12).all())
