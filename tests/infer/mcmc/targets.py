"""Targets with known moments, and running a kernel's functional core on them."""

from __future__ import annotations

import torch

from pyro_dgm.infer.mcmc import Kernel

#: a correlated Gaussian in two dimensions
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=torch.float64)
_PRECISION = torch.linalg.inv(COVARIANCE)


def correlated(u):
    d = u["x"] - MEAN
    return 0.5 * torch.einsum("ci,ij,cj->c", d, _PRECISION, d)


def moments(x):
    """First and second moments about the exact mean, (chains, draws, 5)."""
    d = x - MEAN
    return torch.cat([d, d[..., :1] * d, d[..., 1:] ** 2], -1)


EXACT_MOMENTS = torch.stack([*torch.zeros(2), COVARIANCE[0, 0], COVARIANCE[0, 1], COVARIANCE[1, 1]])


def exact_draws(chains, seed):
    g = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(COVARIANCE)
    return MEAN + torch.randn(chains, 2, generator=g, dtype=torch.float64) @ root.T


def walk(kernel: Kernel, params, steps, seed=12345, warmup=0, after=None):
    """States and infos of a run by the functional core alone; ``after`` looks at each state."""
    kernel.condition()
    state = kernel.init(params, torch.Generator().manual_seed(seed))
    if warmup:
        state = kernel.start_warmup(state, warmup)
        for _ in range(warmup):
            state, info = kernel.step(state)
            state = kernel.adapt(state, info)
        state = kernel.finish_warmup(state)
    seen = []
    for _ in range(steps):
        state, info = kernel.step(state)
        if after is not None:
            seen.append(after(state, info))
    return state, seen


def frequencies(states, num_states):
    """How often each chain is in each state, (chains, num_states), from integer codes (chains, draws)."""
    return torch.nn.functional.one_hot(states, num_states).double().mean(1)


def far_from(frequency, exact):
    """Distance of mean frequencies from exact ones, in standard errors from the spread over chains; rare states as one.

    No error is taken below that of a thousand independent draws a chain.
    """
    rare = exact < 2e-3
    if bool(rare.any()):
        frequency = torch.cat([frequency[:, ~rare], frequency[:, rare].sum(1, keepdim=True)], 1)
        exact = torch.cat([exact[~rare], exact[rare].sum()[None]])
    error = torch.maximum(frequency.std(0), (exact / 1000).sqrt()) / len(frequency) ** 0.5
    return float(((frequency.mean(0) - exact).abs() / error).max())
