"""A potential that the user wrote as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.potentials.base import Position, Potential

__all__ = ["FunctionPotential"]


class FunctionPotential(Potential):
    """A potential that the user wrote: a function of all chains, or, as Pyro's are, of one.

    :param fn: from a dict of ``(chains, ...)`` tensors to ``U`` of shape ``(chains,)`` in nats, where entry ``c`` may
        depend on chain ``c`` alone, or gradients of chains mix; or from a dict of tensors without a chain dimension to
        a scalar, which is then vectorised over chains.
    :param transforms: by name, from constrained to unconstrained space (Pyro's convention); ``fn`` is of unconstrained
        values, and has their Jacobian in it.
    :param over_chains: whether ``fn`` is known to be of all chains; by default its first call shows which it is.
    """

    def __init__(
        self,
        fn: Callable[[Position], Tensor],
        transforms: Mapping[str, Transform] | None = None,
        over_chains: bool = False,
    ) -> None:
        super().__init__()
        self.fn = fn
        self.transforms = dict(transforms or {})
        self._over_chains: Callable[[Position], Tensor] | None = fn if over_chains else None

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        with torch.enable_grad():
            leaves = {k: v.detach().requires_grad_() for k, v in position.items()}
            values = self._values(leaves)
            if not values.requires_grad:
                raise ValueError("potential_fn gave a value that does not depend differentiably on its argument")
            grads = torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return values.detach(), dict(zip(position, grads, strict=True))

    def _value(self, position: Position) -> Tensor:
        with torch.no_grad():
            return self._values(position)

    def _values(self, position: Position) -> Tensor:
        if self._over_chains is None:
            self._over_chains = self._kind(position)
        try:
            values = self._over_chains(position)
        except RuntimeError as error:
            # TorchScript says so in its own words.
            if "linalg." in str(error) and not isinstance(error, torch.linalg.LinAlgError):
                raise torch.linalg.LinAlgError(str(error)) from error
            raise
        if (wrong := _wrong_shape(values, position)) is not None:
            raise ValueError(wrong)
        return values

    def _kind(self, position: Position) -> Callable[[Position], Tensor]:
        """The function over chains: what was given, or what vectorises it if it is of one chain."""
        chains = next(iter(position.values())).shape[0]
        error: Exception | None = None
        values: Any = None
        try:
            values = self.fn(position)
        except torch.linalg.LinAlgError:
            raise
        except Exception as raised:  # a function of one chain fails on several in its own way
            error = raised
        fits = error is None and _wrong_shape(values, position) is None
        # Where an event is as long as there are chains, a sum over the wrong dimension has the right shape.
        if fits and all(chains not in v.shape[1:] for v in position.values()):
            return self.fn
        try:
            single = self.fn({k: v[0] for k, v in position.items()})
        except Exception:
            single = None
        if not isinstance(single, Tensor) or single.dim() > 0:
            if error is not None:
                raise error
            return self.fn
        if fits and torch.allclose(values[0].detach(), single.detach().to(values.dtype), equal_nan=True):
            return self.fn
        batched = torch.func.vmap(self.fn)
        try:
            batched(position)
        except Exception:  # control flow on values, say
            return self._in_turn
        return batched

    def _in_turn(self, position: Position) -> Tensor:
        chains = next(iter(position.values())).shape[0]
        return torch.stack([self.fn({k: v[c] for k, v in position.items()}) for c in range(chains)])

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        first = next(iter(position.values()))
        kind = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        values, log_det = dict(position), first.new_zeros(first.shape[0], dtype=kind)
        for name, transform in self.transforms.items():
            u = position[name]
            values[name] = transform.inv(u)
            log_det = log_det + transform.inv.log_abs_det_jacobian(u, values[name]).reshape(len(u), -1).sum(-1)
        return values, log_det

    def check(self, params: Position) -> None:
        """:raises ValueError: for transforms of names that there are not."""
        if unknown := sorted(set(self.transforms) - set(params)):
            raise ValueError(
                f"transforms are for {unknown}, of which initial_params has no values; it has {sorted(params)}"
            )


def _wrong_shape(values: Any, position: Position) -> str | None:
    chains = next(iter(position.values())).shape[0]
    if isinstance(values, Tensor) and values.shape == (chains,):
        return None
    got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    return (
        f"potential_fn must give one value a chain, shape ({chains},), got {got}; it is called with "
        f"{ {k: tuple(v.shape) for k, v in position.items()} }, chains leading"
    )
