"""Random numbers under ``torch.vmap``: each particle draws its own, where torch would raise an error or share one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import dirichlet
from torch.overrides import TorchFunctionMode

__all__ = ["is_vmapped", "own_noise"]


def is_vmapped(tensor: Any) -> bool:
    """Whether a tensor is batched by a ``vmap`` in progress, and so has a value for each particle."""
    return torch.func.debug_unwrap(tensor) is not tensor


@contextmanager
def own_noise(index: Tensor, poison: bool = False) -> Iterator[None]:
    """Inside, each particle draws random numbers of its own. To be entered under vmap.

    :param index: the particle's number, batched by vmap.
    :param poison: fill a shared tensor with NaN after random numbers were drawn into it. A program that reads the
        tensor afterwards is then detected, since it would not see the draws.
    """
    with _OwnNoise(index, poison), _batched_dirichlet(index):
        yield


_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]


class _OwnNoise(TorchFunctionMode):
    """Gives each particle its own numbers where a tensor that all share is filled with random numbers in place.

    Torch's distributions draw in this way (``torch.empty(shape).normal_()``), and vmap raises an error for it.
    """

    METHODS = frozenset(
        getattr(torch.Tensor, name)
        for name in ("normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "geometric_", "bernoulli_")
    )

    def __init__(self, index: Tensor, poison: bool = False) -> None:
        super().__init__()
        self.index, self.poison = index, poison
        self.spoiled: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.spoiled:
            self._refuse_spoiled((*args, *(kwargs or {}).values()))
        if func in self.METHODS and not is_vmapped(args[0]):
            shared = args[0]
            own = (self.index * 0).to(shared) + torch.zeros_like(shared)
            self.spoiled.append(weakref.ref(shared))
            if self.poison and shared.is_floating_point():
                shared.fill_(torch.nan)
            return func(own, *args[1:], **(kwargs or {}))
        if func is torch.Tensor.clamp_ and is_vmapped(args[0]):  # vmap has no rule for it, and warns
            return args[0].copy_(args[0].clamp(*args[1:], **(kwargs or {})))
        if func == _DATA:  # vmap raises an error for .data
            return args[0].detach()
        return func(*args, **(kwargs or {}))

    def _refuse_spoiled(self, used: tuple[Any, ...]) -> None:
        alive = [tensor for ref in self.spoiled if (tensor := ref()) is not None]
        self.spoiled = [weakref.ref(tensor) for tensor in alive]
        if any(value is tensor for value in used for tensor in alive):
            raise RuntimeError("a tensor that all particles share is filled with random numbers in place, and used")


class _DirichletDraw(torch.autograd.Function):
    """Torch's differentiable Dirichlet draw with a batching rule."""

    @staticmethod
    def forward(concentration: Tensor) -> Tensor:
        return torch._sample_dirichlet(concentration)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, concentration = ctx.saved_tensors
        total = concentration.sum(-1, True).expand_as(concentration)
        slope = torch._dirichlet_grad(x, concentration, total)
        return slope * (grad - (x * grad).sum(-1, True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], concentration: Tensor) -> tuple[Tensor, int]:
        (dim,) = in_dims
        if dim is None:
            concentration = concentration.expand(info.batch_size, *concentration.shape)
        else:
            concentration = concentration.movedim(dim, 0)
        return _DirichletDraw.apply(concentration), 0


@contextmanager
def _batched_dirichlet(index: Tensor) -> Iterator[None]:
    """Have Beta and Dirichlet distributions draw by :class:`_DirichletDraw`: torch's own has no batching rule."""

    class Draw:
        @staticmethod
        def apply(concentration: Tensor) -> Tensor:
            # With parameters that all particles share, they would share one draw too.
            own = concentration if is_vmapped(concentration) else concentration + (index * 0).to(concentration)
            return _DirichletDraw.apply(own)

    before = dirichlet._Dirichlet
    dirichlet._Dirichlet = Draw  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        dirichlet._Dirichlet = before  # type: ignore[misc]
