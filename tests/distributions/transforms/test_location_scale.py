"""A given location and scale."""

import pytest
import torch

from pyro_dgm.distributions.transforms import LocationScale


def test_values_and_determinant():
    loc, log_scale = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    t, x = LocationScale(loc, log_scale), torch.randn(5, 4, 3, dtype=torch.float64)
    y, log_det = t.forward_and_log_det(x)
    torch.testing.assert_close(y, loc + log_scale.exp() * x)
    torch.testing.assert_close(log_det, log_scale.sum(-1).expand(5, 4))
    back, back_log_det = t.inverse_and_log_det(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_log_det, -log_det)


def test_what_is_given_is_no_parameter():
    t = LocationScale(torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3)))
    assert list(t.parameters()) == []
    t(torch.randn(2, 3)).sum().backward()
    assert t.loc.grad is not None


def test_bad_shapes_are_named():
    for loc, log_scale in ((torch.zeros(3), torch.zeros(2)), (torch.zeros(()), torch.zeros(()))):
        with pytest.raises(ValueError, match="loc and log_scale must have one shape"):
            LocationScale(loc, log_scale)
