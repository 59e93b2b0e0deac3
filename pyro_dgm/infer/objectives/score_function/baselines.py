"""What learned baselines and control variates are made of: a datum's observations, a small network, a running scale."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.programs.structure import sample_sites

__all__ = ["RunningScale", "mlp", "observed_features", "per_datum", "require_width"]


class RunningScale(nn.Module):
    """Running mean and standard deviation of a learning signal (nats), kept in buffers and updated in place."""

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, like: Tensor, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", like.new_zeros(()))
        self.register_buffer("variance", like.new_ones(()))
        self.register_buffer("seen", like.new_zeros(()))

    @property
    def centre(self) -> Tensor:
        """The mean before this batch, as a tensor that a later update does not change."""
        return self.mean.clone()

    @property
    def scale(self) -> Tensor:
        """The standard deviation before this batch, at least 1 nat as in NVIL."""
        return self.variance.sqrt().clamp(min=1.0)

    @torch.no_grad()
    def update(self, signal: Tensor) -> None:
        # The first batch counts whole: nothing of where the buffers start is left in them.
        rate = torch.where(self.seen == 0, torch.ones_like(self.mean), torch.full_like(self.mean, 1 - self.decay))
        self.mean.add_(rate * (signal.mean() - self.mean))
        self.variance.add_(rate * (((signal - self.mean) ** 2).mean() - self.variance))
        self.seen.add_(1)


def mlp(width: int, hidden: int, like: Tensor) -> nn.Sequential:
    """One hidden layer; the last starts at zero, so that an untrained network changes nothing."""
    net = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(like.device, like.dtype)
    last = net[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return net


def per_datum(particles: Particles, value: Tensor, event_dim: int, particle: bool, pool: bool) -> Tensor:
    """Bring a site's values to ``(K or nothing, *shape, features)``.

    :param particle: whether the particles are kept as the first dimension (else values are the same for all).
    :param pool: average over plates inside the datum, whose sizes may change from batch to batch, or list them all.
    """
    nesting, lead = particles.nesting, int(particle)
    batch = value.shape[: value.dim() - event_dim]
    event = value.shape[value.dim() - event_dim :]
    value = value.reshape((1,) * (nesting + lead - len(batch)) + batch + event)
    dims = [lead + nesting + f.dim for f in particles.plates]
    rest = [d for d in range(lead, lead + nesting) if d not in dims]
    sizes = list(value.shape)
    for d, frame in zip(dims, particles.plates, strict=True):
        sizes[d] = frame.size
    value = value.expand(sizes)
    if pool and rest:
        value = value.mean(rest, keepdim=True)
    events = range(lead + nesting, value.dim())
    value = value.permute([*range(lead), *dims, *rest, *events])
    return value.reshape(*value.shape[: lead + len(dims)], -1)


def observed_features(particles: Particles) -> Tensor:
    """The observed values of each datum, ``(*shape, features)``; plates inside a datum are averaged over."""
    like = particles.log_weights
    parts = []
    for site in sample_sites(particles.pairs[0][0]).values():
        fn = site["fn"]
        # Deterministic and factor sites count as observed, and may hold values of latents: a baseline must not.
        if not site["is_observed"] or site["infer"].get("_deterministic") or isinstance(fn, (dist.Delta, dist.Unit)):
            continue
        value, event_dim = site["value"].detach(), fn.event_dim
        if value.dim() - event_dim > particles.nesting:
            if value.shape[0] != 1:
                continue
            value = value.squeeze(0)
        parts.append(per_datum(particles, value.to(like.dtype), event_dim, particle=False, pool=True))
    return torch.cat(parts, -1) if parts else like.new_zeros((*particles.shape, 0))


def require_width(objective: Any, net: nn.Module, features: Tensor) -> None:
    """Refuse another program's features.

    :raises ValueError: if the network was built for another number of them.
    """
    first = next(m for m in net.modules() if isinstance(m, nn.Linear))
    if features.shape[-1] != first.in_features:
        raise ValueError(
            f"{type(objective).__name__} was built for {first.in_features} values a datum and was given "
            f"{features.shape[-1]}: an objective with networks of its own belongs to one program, make a new one"
        )
