"""Random state that is put back: torch's, NumPy's and Python's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pyro_dgm.ops.random_state import forked_rng, seeded

CPU = torch.device("cpu")


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


@pytest.mark.parametrize("device", [None, CPU])
def test_all_generators_are_seeded_and_put_back(device: torch.device | None):
    with forked_rng(seed=3):
        before = draws()
    with forked_rng(seed=1):
        with forked_rng(device, seed=3):
            inside = draws()
        after = draws()
    with forked_rng(seed=1):
        expected = draws()
    assert inside == before
    assert after == expected


def test_they_are_put_back_after_an_error():
    with forked_rng(seed=1):
        with pytest.raises(ZeroDivisionError), forked_rng():
            1 / (draws()[0] * 0)
        after = draws()
    with forked_rng(seed=1):
        assert draws() == after


def test_without_a_seed_draws_advance_the_global_generators():
    with forked_rng(seed=1):
        with seeded(None, CPU):
            first = draws()
        second = draws()
    with forked_rng(seed=1):
        assert (draws(), draws()) == (first, second)
    with pytest.raises(TypeError, match="seed must be an integer"):
        seeded("1", CPU)  # type: ignore[arg-type]
