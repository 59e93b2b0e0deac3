"""What a loader gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

__all__ = ["Dataset", "as_float_images"]


@dataclass(frozen=True, repr=False)
class Dataset:
    """A data set, split as its literature splits it, held in memory.

    Images are floating-point tensors of shape ``(N, height, width)`` with values in [0, 1] (0 or 1 where the set is
    binarised); labels are int64 of shape ``(N,)``.  Parts that a set does not have are ``None``.

    :param name: the name that :func:`pyro_dgm.datasets.load` knows it by.
    :param train: data to fit on.
    :param test: data that a reported figure is computed on.
    :param validation: data for early stopping and hyper-parameters.
    :param train_labels: classes of ``train``.
    :param test_labels: classes of ``test``.
    :param validation_labels: classes of ``validation``.
    :param note: what has to be said beside a figure computed on it, such as how it was binarised.

    Example::

        >>> from pyro_dgm import datasets
        >>> datasets.digits()
        Dataset('digits': train (1437, 8, 8), test (360, 8, 8), labels)
    """

    name: str
    train: torch.Tensor
    test: torch.Tensor
    validation: torch.Tensor | None = None
    train_labels: torch.Tensor | None = None
    test_labels: torch.Tensor | None = None
    validation_labels: torch.Tensor | None = None
    note: str = ""

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum, as ``models.VAE(event_shape=...)`` takes it."""
        return self.train.shape[1:]

    def splits(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parts that there are, by name."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor) and not field.name.endswith("labels"):
                yield field.name, value

    def __repr__(self) -> str:
        parts = [f"{name} {tuple(value.shape)}" for name, value in self.splits()]
        if self.train_labels is not None:
            parts.append("labels")
        return f"Dataset({self.name!r}: {', '.join(parts)})"


def as_float_images(pixels: torch.Tensor, maximum: float, dtype: torch.dtype | None) -> torch.Tensor:
    """Integer grey values scaled to [0, 1]; ``dtype=None`` is torch's default."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    return pixels.to(dtype) / maximum
