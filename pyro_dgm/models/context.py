"""What a conditional model is conditioned on: classes, or vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_dgm.ops.arguments import check_count

__all__ = ["Context"]


class Context:
    """How the context of a batch is checked, and turned into vectors that networks take beside their input.

    :param num_classes: the context is a class for each datum, integers ``(N,)``, given to networks as one-hot vectors.
    :param context_dim: the context is a vector for each datum, ``(N, context_dim)``.
    :raises ValueError: if both are given, or one is not positive.
    """

    def __init__(self, num_classes: int | None = None, context_dim: int | None = None) -> None:
        check_count("num_classes", num_classes, optional=True)
        check_count("context_dim", context_dim, optional=True)
        if num_classes is not None and context_dim is not None:
            raise ValueError("give num_classes (a class for each datum) or context_dim (a vector for each), not both")
        self.num_classes, self.context_dim = num_classes, context_dim

    @property
    def size(self) -> int:
        """Length of a vector; 0 where the model is not conditional."""
        return self.num_classes or self.context_dim or 0

    def check(self, context: tuple[Any, ...], length: int) -> None:
        """Refuse a context that does not go with a batch of ``length`` data.

        :raises TypeError: if it is missing, or there is one too many, or it is no tensor.
        :raises ValueError: if its shape is wrong, a class out of range, or a value not finite.
        """
        wanted = 1 if self.size else 0
        if len(context) != wanted:
            kind = f"classes ({length},)" if self.num_classes else f"vectors ({length}, {self.context_dim})"
            what = f"the program is conditional on {kind}" if wanted else "the program is not conditional"
            raise TypeError(f"{what}, but {len(context)} context arguments came with the data")
        if not wanted:
            return
        (y,) = context
        if not isinstance(y, Tensor):
            raise TypeError(f"the context must be a tensor, got {type(y).__name__}")
        if self.num_classes is not None:
            if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != (length,):
                raise ValueError(
                    f"the context must be integers of shape ({length},), got {y.dtype} of shape {tuple(y.shape)}"
                )
            if bool(((y < 0) | (y >= self.num_classes)).any()):
                raise ValueError(f"the context holds classes outside 0 to {self.num_classes - 1}")
        elif y.shape != (length, self.context_dim) or not bool(torch.isfinite(y).all()):
            raise ValueError(
                f"the context must be finite, of shape ({length}, {self.context_dim}), got shape {tuple(y.shape)}"
            )

    def encode(self, context: tuple[Tensor, ...], like: Tensor) -> tuple[Tensor, ...]:
        """The context as vectors ``(N, size)`` in the dtype of ``like``; nothing where there is none."""
        if self.num_classes is None:
            return context
        # torch's one_hot looks at the values, which a recorded graph cannot do and a GPU would have to wait for.
        classes = torch.arange(self.num_classes, device=context[0].device)
        return ((context[0][..., None] == classes).to(like.dtype),)

    def config(self) -> dict[str, int]:
        """Arguments that rebuild it."""
        both = {"num_classes": self.num_classes, "context_dim": self.context_dim}
        return {key: value for key, value in both.items() if value is not None}
