"""Potentials that kernels make of other potentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.capture.graph import GraphFunction
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential

__all__ = ["UnknownPotential", "ValuePotential", "WrappedPotential"]


class WrappedPotential(Potential):
    """A potential computed from another one, which alone keeps graphs and knows of failed factorisations.

    :param base: the other potential.
    """

    def __init__(self, base: Potential) -> None:
        super().__init__()
        self.base = base

    @property
    def compile(self) -> bool:
        """That of the other potential."""
        return self.base.compile

    @compile.setter
    def compile(self, compile: bool) -> None:
        self.base.compile = compile

    @property
    def transforms(self) -> dict[str, Transform]:  # type: ignore[override]
        return self.base.transforms

    @property
    def can_be_recorded(self) -> bool:
        return self.base.can_be_recorded

    def __call__(self, position: Position) -> tuple[Tensor, Position]:
        return self._evaluate(position)

    def value(self, position: Position) -> Tensor:
        return self(position)[0]

    @property
    def chunk_size(self) -> int | None:
        """That of the other potential."""
        return self.base.chunk_size

    @chunk_size.setter
    def chunk_size(self, size: int | None) -> None:
        self.base.chunk_size = size

    def graph(self, position: Position, kind: str = "gradient") -> GraphFunction:
        return self.base.graph(position, kind)

    def group(self, position: Position) -> int:
        return self.base.group(position)

    def compile_graph(self, position: Position, kind: str = "gradient") -> None:
        self.base.compile_graph(position, kind)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        with self.base.tracing():
            yield

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        return self.base.constrain(position)

    def explain(self, position: Position) -> str:
        # Only a model can say more than the numbers here, and those are this potential's.
        return self.base.explain(position) if hasattr(self.base, "latents") else super().explain(position)


class ValuePotential(WrappedPotential):
    """Another potential without its gradient, which need then not exist.

    :param base: the potential.
    :param discrete: whether positions may be integers or booleans.
    """

    def __init__(self, base: Potential, discrete: bool = False) -> None:
        super().__init__(base)
        self.discrete = discrete

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        try:
            return self.base.value(position), {}
        except torch.linalg.LinAlgError:
            return self._each(position), {}

    def graph(self, position: Position, kind: str = "value") -> GraphFunction:
        return self.base.graph(position, "value")

    def _each(self, position: Position) -> Tensor:
        """Chain after chain, since one outside the domain of a factorisation fails for all."""
        values: list[Tensor | None] = []
        for c in range(next(iter(position.values())).shape[0]):
            try:
                values.append(self.base.value({k: v[c : c + 1] for k, v in position.items()}))
            except torch.linalg.LinAlgError:
                values.append(None)
        like = next((v for v in values if v is not None), torch.zeros(1))
        return torch.cat([torch.full_like(like, float("nan")) if v is None else v for v in values])


class UnknownPotential(Potential):
    """No potential: what a kernel given by its conditionals alone can say of the density, namely NaN."""

    known = False
    discrete = True

    def __init__(self) -> None:
        super().__init__()
        self.transforms = {}

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        first = next(iter(position.values()))
        dtype: Any = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        return torch.full((first.shape[0],), float("nan"), dtype=dtype, device=first.device), {}

    def __call__(self, position: Position) -> tuple[Tensor, Position]:
        return self._evaluate(position)

    def value(self, position: Position) -> Tensor:
        return self(position)[0]

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        return position, torch.zeros_like(self(position)[0])
