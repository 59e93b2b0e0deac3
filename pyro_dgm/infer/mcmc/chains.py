"""Small operations on tensors whose leading dimension is chains, shared by kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["finite_chains", "normals_like", "per_chain", "uniform_per_chain"]

Position = dict[str, Tensor]


def per_chain(value: Tensor, like: Tensor) -> Tensor:
    """One number a chain, ``(chains,)``, or one for all, laid out to multiply ``(chains, ...)``."""
    value = value.to(like.dtype) if like.is_floating_point() else value
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (like.dim() - 1))


def finite_chains(value: Tensor, *tensors: Position) -> Tensor:
    """Chains whose potential and whose every element of these tensors is finite, ``(chains,)``.

    One sum a tensor: an element that is not finite makes the sum not finite.
    """
    total = value
    for position in tensors:
        for v in position.values():
            total = total + v.reshape(len(v), -1).sum(-1)
    return torch.isfinite(total)


def normals_like(position: Mapping[str, Tensor], generator: torch.Generator, prefix: str) -> Position:
    """A standard normal tensor for each of these, named ``prefix name``."""
    normals = {}
    for k, v in position.items():
        normals[f"{prefix} {k}"] = torch.randn(v.shape, generator=generator, dtype=v.dtype, device=v.device)
    return normals


def uniform_per_chain(like: Tensor, generator: torch.Generator) -> Tensor:
    """A uniform number a chain, of the type of ``like``, ``(chains, ...)`` as it is."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
