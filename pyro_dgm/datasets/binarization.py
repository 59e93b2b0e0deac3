"""Binarisation of grey images: a fresh draw each time, one fixed draw, or a threshold.

Log-likelihoods of the three are not comparable, so a figure always says which was used: on MNIST a dynamically
binarised test bound is several nats better than a statically binarised one for the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import get_worker_info

from pyro_dgm.ops.arguments import check_seed

__all__ = ["DynamicBinarization", "binarize_images", "dynamic_binarization"]

METHODS = ("threshold", "stochastic")


def _check_probabilities(name: str, x: torch.Tensor) -> None:
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        got = f"a {x.dtype} tensor" if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor of grey values in [0, 1], got {got}")
    if x.numel():
        low, high = x.detach().aminmax()
        if not (low >= 0 and high <= 1):  # NaN fails both
            raise ValueError(f"{name} must lie in [0, 1], got values from {low.item():g} to {high.item():g}")


def dynamic_binarization(x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    r"""Draw :math:`b_i \sim \mathrm{Bernoulli}(x_i)`, anew at each call.

    The transform to apply to each mini-batch when a set is to be *dynamically* binarised.

    :param x: grey values in [0, 1], any shape.
    :param generator: the generator to draw with (torch's global one by default).
    :return: zeros and ones with the shape and dtype of ``x``.
    :raises TypeError: if ``x`` is no floating-point tensor.
    :raises ValueError: if a value lies outside [0, 1] or is NaN.

    Source: Salakhutdinov and Murray (2008), *On the quantitative analysis of deep belief networks*, ICML; the name
    after Burda, Grosse and Salakhutdinov (2015), arXiv:1509.00519.

    Example::

        >>> import torch
        >>> from pyro_dgm.datasets import dynamic_binarization
        >>> x = torch.tensor([[0.0, 0.5, 1.0]]).expand(1000, 3)
        >>> b = dynamic_binarization(x, torch.Generator().manual_seed(0))
        >>> b[:, 0].sum().item(), b[:, 2].sum().item(), 400 < b[:, 1].sum().item() < 600
        (0.0, 1000.0, True)
    """
    _check_probabilities("x", x)
    return torch.bernoulli(x.detach(), generator=generator)


class DynamicBinarization(torch.utils.data.Dataset):
    """Images whose pixels are drawn anew whenever they are read: hand it to a ``DataLoader``.

    :param images: grey values in [0, 1], shape ``(N, ...)``.
    :param others: tensors with the same first dimension that go along unchanged, such as labels.
    :param seed: seed of its own generator; by default it draws from torch's global one.  Worker processes of a
        ``DataLoader`` always draw from their process's generator, which torch seeds from the loader's
        ``generator=`` - a copied generator would repeat its draws in every worker and every epoch.
    :raises TypeError: if ``images`` is no floating-point tensor.
    :raises ValueError: if a value lies outside [0, 1], or the first dimensions differ.

    Example::

        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> from pyro_dgm.datasets import DynamicBinarization
        >>> data = DynamicBinarization(torch.full((6, 8, 8), 0.5), seed=0)
        >>> [tuple(batch.shape) for batch in DataLoader(data, batch_size=4)]
        [(4, 8, 8), (2, 8, 8)]
        >>> bool((data[0] == data[0]).all())
        False
    """

    def __init__(self, images: torch.Tensor, *others: torch.Tensor, seed: int | None = None) -> None:
        _check_probabilities("images", images)
        if images.dim() == 0:
            raise ValueError("images must have a first dimension that counts them, got a scalar")
        for i, other in enumerate(others):
            if len(other) != len(images):
                raise ValueError(f"others[{i}] must have {len(images)} rows as images has, got {len(other)}")
        self.images = images.detach()
        self.others = others
        check_seed(seed)
        self.generator = None if seed is None else torch.Generator(images.device).manual_seed(seed)

    def __len__(self) -> int:
        return len(self.images)

    def _draw(self, grey: torch.Tensor) -> torch.Tensor:
        return torch.bernoulli(grey, generator=None if get_worker_info() is not None else self.generator)

    def __getitem__(self, index: int) -> Any:
        drawn = self._draw(self.images[index])
        return (drawn, *(other[index] for other in self.others)) if self.others else drawn

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A batch in one draw; ``DataLoader`` calls this where it can."""
        rows = torch.as_tensor(indices, device=self.images.device)
        drawn = self._draw(self.images[rows])
        if not self.others:
            return list(drawn.unbind())
        return list(zip(drawn.unbind(), *(other[rows.to(other.device)].unbind() for other in self.others)))


def binarize_images(x: torch.Tensor, method: str | None, seed: int) -> torch.Tensor:
    """What a loader's ``binarize=`` means: ``"threshold"`` at one half, or ``"stochastic"``, one draw fixed by a seed.

    Both give the same zeros and ones at every call.  ``None`` leaves the images grey.
    """
    if method is None:
        return x
    if method == "threshold":
        return (x > 0.5).to(x.dtype)
    if method == "stochastic":
        return torch.bernoulli(x, generator=torch.Generator().manual_seed(seed))
    raise ValueError(f"binarize must be None or one of {METHODS}, got {method!r}")
