"""What the recipes of one kind have in common: a flow with its optimiser, a VAE with its optimiser."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms import Bijection, make_flow
from pyro_dgm.infer import ELBO
from pyro_dgm.models import VAE, FlowModel
from pyro_dgm.nn.build import activation_and_name
from pyro_dgm.ops.arguments import check_count, check_positive
from pyro_dgm.recipes.base import Composition

__all__ = ["adam", "at_least_two", "flow", "vae", "with_discriminator"]

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def adam(
    learning_rate: float,
    *,
    kind: type[torch.optim.Optimizer] = torch.optim.Adam,
    **options: Any,
) -> Optimizer:
    """Adam, or one of its kin, at a learning rate; options that are ``None`` or zero are left at torch's default."""
    check_positive("learning_rate", learning_rate)
    given = {key: value for key, value in options.items() if value}
    return functools.partial(kind, lr=learning_rate, **given)  # type: ignore[call-arg]


def at_least_two(name: str, event_shape: Sequence[int], hint: str = "") -> None:
    """Refuse data of one element for a coupling, which keeps some elements and changes the others.

    :raises ValueError: if there is one element.
    """
    if math.prod(event_shape) < 2:
        raise ValueError(f"{name} needs data of at least two elements, got event_shape {tuple(event_shape)}{hint}")


def flow(
    event_shape: Sequence[int],
    transform: str | Callable[..., Bijection],
    optimizer: Optimizer,
    batch_size: int,
    *,
    num_layers: int = 1,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    options: Mapping[str, Any] | None = None,
    clip_norm: float | None = None,
    fast: str = "inverse",
    mixing: str | None = None,
    dequantize: str | None = None,
    num_levels: int = 256,
) -> Composition:
    """A flow that is fitted by maximum likelihood: without dequantisation the ELBO is the log-likelihood."""
    if fast != "inverse" or mixing is not None:  # what FlowModel leaves at its default
        made, _ = activation_and_name(activation)
        transform = functools.partial(
            make_flow, transform, num_layers=num_layers, fast=fast, mixing=mixing, hidden=hidden, activation=made,
            options=options,
        )  # fmt: skip
        hidden = activation = options = None
    program = FlowModel(
        event_shape, transform, num_layers, hidden, activation,
        options=options, dequantize=dequantize, num_levels=num_levels,
    )  # fmt: skip
    training: dict[str, Any] = {"batch_size": check_count("batch_size", batch_size)}
    if clip_norm is not None:
        training["clip_norm"] = check_positive("clip_norm", clip_norm)
    return Composition(program, ELBO(), optimizer, training)


def vae(
    event_shape: Sequence[int],
    objective: Any,
    optimizer: Optimizer | Mapping[str, Optimizer],
    batch_size: int,
    *,
    latent_dim: int,
    hidden: Sequence[int],
    activation: str,
    likelihood: Any,
    guide: nn.Module | None = None,
) -> Composition:
    """A VAE of fully connected networks, under an objective."""
    program = VAE(event_shape, latent_dim, likelihood, "mlp", hidden, activation, guide=guide)
    return Composition(program, objective, optimizer, {"batch_size": check_count("batch_size", batch_size)})


def with_discriminator(program: Optimizer, discriminator: Optimizer) -> dict[str, Optimizer]:
    """Optimisers for a program, and for the discriminator that the objective trains beside it."""
    return {"model": program, "guide": program, "objective": discriminator}
