"""What is inside a distribution, and buffers that are put back."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.programs.base_of import base_of
from pyro_dgm.programs.module_state import buffers_kept


def test_the_law_inside_wrappers():
    normal = dist.Normal(torch.zeros(3), 1.0)
    masked = normal.mask(torch.tensor([True, False, True]))
    assert base_of(masked.to_event(1)) is normal
    assert base_of(masked.to_event(1), dist.Independent) is masked
    log_normal = dist.LogNormal(torch.zeros(3), 1.0).to_event(1)
    assert type(base_of(log_normal, dist.Independent)) is dist.LogNormal
    assert type(base_of(log_normal)).__name__ == "Normal"


def test_buffers_are_put_back_after_an_error_too():
    norm = torch.nn.BatchNorm1d(2)
    before = {name: b.clone() for name, b in norm.named_buffers()}
    with buffers_kept(norm.buffers()):
        norm(torch.randn(5, 2))
        assert not torch.equal(norm.running_mean, before["running_mean"])
    with pytest.raises(ZeroDivisionError), buffers_kept(norm.buffers()):
        1 / (norm(torch.randn(5, 2)).numel() * 0)
    assert all(torch.equal(b, before[name]) for name, b in norm.named_buffers())
