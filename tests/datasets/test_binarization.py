"""Binarisation: right frequencies, fresh draws, and no generator moved that is not its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pyro_dgm.datasets import DynamicBinarization, dynamic_binarization

Guard = Callable[[], AbstractContextManager[None]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frequencies(dtype: torch.dtype, rng_unchanged: Guard) -> None:
    p = torch.linspace(0, 1, 11, dtype=dtype)
    n = 20_000
    with rng_unchanged():
        draws = dynamic_binarization(p.expand(n, 11), torch.Generator().manual_seed(1))
    assert draws.dtype == dtype
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    standard_error = (p * (1 - p) / n).sqrt()
    assert ((draws.mean(0) - p).abs() <= 4 * standard_error + 1e-12).all()


def test_fresh_at_each_call_and_repeatable_by_seed() -> None:
    x = torch.full((50, 8, 8), 0.5)
    generator = torch.Generator().manual_seed(3)
    first, second = dynamic_binarization(x, generator), dynamic_binarization(x, generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, dynamic_binarization(x, generator.manual_seed(3)))
    assert not torch.equal(dynamic_binarization(x), dynamic_binarization(x))


@given(st.lists(st.integers(0, 4), max_size=3))
def test_shapes(shape: list[int]) -> None:
    x = torch.rand(shape)
    assert dynamic_binarization(x).shape == x.shape


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.tensor([0.0, 1.5]), ValueError, r"x must lie in \[0, 1\], got values from 0 to 1.5"),
        (torch.tensor([-0.1, 0.5]), ValueError, r"got values from -0.1 to 0.5"),
        (torch.tensor([math.nan, 0.5]), ValueError, r"got values from nan"),
        (torch.tensor([0, 255], dtype=torch.uint8), TypeError, "got a torch.uint8 tensor"),
        ([0.5], TypeError, "got list"),
    ],
)
def test_bad_values(x: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dynamic_binarization(x)


def test_dataset_in_a_loader(rng_unchanged: Guard) -> None:
    images, labels = torch.full((10, 4, 4), 0.5), torch.arange(10)
    data = DynamicBinarization(images, labels, seed=0)
    assert len(data) == 10
    loader = DataLoader(data, batch_size=4)
    # The loader itself draws a base seed from torch's generator; reading the set directly must not.
    epochs = [list(loader) for _ in range(2)]
    for epoch in epochs:
        assert [tuple(x.shape) for x, _ in epoch] == [(4, 4, 4), (4, 4, 4), (2, 4, 4)]
        assert torch.cat([y for _, y in epoch]).tolist() == list(range(10))
    first, second = (torch.cat([x for x, _ in epoch]) for epoch in epochs)
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat([x for x, _ in DataLoader(DynamicBinarization(images, labels, seed=0), 4)]))
    with rng_unchanged():
        item, label = data[7]
    assert item.shape == (4, 4) and label == 7


def test_worker_processes_draw_anew_in_every_epoch_and_worker() -> None:
    data = DynamicBinarization(torch.full((4, 16, 16), 0.5), seed=0)
    loader = DataLoader(data, batch_size=2, num_workers=2, generator=torch.Generator().manual_seed(0))
    draws = torch.cat([batch for _ in range(2) for batch in loader]).flatten(1)
    assert len(draws.unique(dim=0)) == len(draws) == 8


def test_dataset_refuses() -> None:
    with pytest.raises(ValueError, match=r"others\[0\] must have 3 rows as images has, got 2"):
        DynamicBinarization(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="must lie in"):
        DynamicBinarization(torch.full((3, 4), 2.0))
    with pytest.raises(ValueError, match="got a scalar"):
        DynamicBinarization(torch.tensor(0.5))
