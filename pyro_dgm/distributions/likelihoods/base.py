"""Likelihoods: from a decoder's output to the distribution that stands at the observed site.

A likelihood says how many numbers a decoder must give for one event (:attr:`Likelihood.param_shape`) and turns them
into a distribution.  Any callable ``params -> Distribution`` serves as one too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.ops.arguments import check_floating

__all__ = ["LIKELIHOODS", "Likelihood", "register"]


class Likelihood(nn.Module):
    """The contract: ``param_shape``, ``forward(params) -> Distribution`` and ``mean(params)``.

    :param event_shape: shape of one datum.
    """

    #: whether the event is discrete, so that data must be checked against the support before training
    discrete = False

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)

    @property
    def param_shape(self) -> torch.Size:
        """Event shape of the decoder's output."""
        return self.event_shape

    def mean(self, params: Tensor) -> Tensor:
        """Mean of one datum, ``batch + event_shape``."""
        return self(params).mean

    def check(self, x: Tensor, argument: str = "x") -> None:
        """Raise ``ValueError`` if ``x`` is outside the support, with what to do about it."""
        check_floating(argument, x)

    def config(self) -> dict[str, Any]:
        """What :func:`likelihood` rebuilds it from, for JSON: its name there (or that of its class) and options."""
        names = {made: name for name, made in LIKELIHOODS.items()}
        return {"name": names.get(type(self), type(self).__name__)}

    def parts(self, params: Tensor, count: int) -> tuple[Tensor, ...]:
        """Split a decoder's output of ``(count, *event_shape)`` into its ``count`` numbers for each element."""
        return params.unbind(-1 - len(self.event_shape)) if count > 1 else (params,)

    def independent(self, elements: dist.TorchDistribution) -> dist.TorchDistribution:
        """The distribution of one datum, whose elements are independent."""
        return elements.to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


#: the library's likelihoods by the name that families take
LIKELIHOODS: dict[str, type[Likelihood]] = {}

L = TypeVar("L", bound=type[Likelihood])


def register(name: str) -> Callable[[L], L]:
    """Enter a likelihood in :data:`LIKELIHOODS`."""

    def enter(made: L) -> L:
        LIKELIHOODS[name] = made
        return made

    return enter
