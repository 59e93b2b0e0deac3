"""A normal of one scale is a normal: densities, gradients, draws and divergences against torch's own."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.distributions import GaussianLikelihood
from pyro_dgm.distributions.shared_scale import SharedScaleNormal

F64 = torch.float64
SHAPES = {"one scale": (), "one a row": (3, 1), "one a column": (4,), "one an element": (3, 4)}


def pair(shape):
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(3, 4, dtype=F64, generator=generator)
    scale = (0.5 + torch.rand(shape, dtype=F64, generator=generator)).requires_grad_()
    return SharedScaleNormal(loc, scale), dist.Normal(loc, scale), scale


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("batch", [None, (2, 3, 4)])
def test_density_and_its_gradient(shape, batch):
    ours, theirs, scale = pair(shape)
    if batch is not None:
        ours, theirs = ours.expand(batch), theirs.expand(batch)
    assert ours.batch_shape == theirs.batch_shape
    x = torch.randn(5, *ours.batch_shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    found, wanted = ours.log_prob(x), theirs.log_prob(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.linspace(0.5, 1.5, found.numel(), dtype=F64).reshape(found.shape)
    gradients = [torch.autograd.grad((v * weight).sum(), scale)[0] for v in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_all_else_is_the_normals():
    ours, theirs, _ = pair(())
    torch.manual_seed(0)
    drawn = ours.rsample((7,))
    torch.manual_seed(0)
    assert torch.equal(drawn, theirs.rsample((7,)))
    assert torch.equal(ours.entropy(), theirs.entropy())
    other = dist.Normal(torch.zeros(4, dtype=F64), 2.0)
    assert torch.equal(torch.distributions.kl_divergence(ours, other), torch.distributions.kl_divergence(theirs, other))
    with pytest.raises(ValueError, match="scale"):
        SharedScaleNormal(torch.zeros(2), torch.tensor(-1.0), validate_args=True)
    with pytest.raises(ValueError, match="value"):
        SharedScaleNormal(torch.zeros(2), torch.tensor(1.0), validate_args=True).log_prob(torch.full((2,), torch.nan))


@pytest.mark.parametrize("scale", [0.3, "learned", "per_element"])
def test_the_likelihood_is_the_independent_normal(scale):
    likelihood = GaussianLikelihood((3, 4), scale, init_scale=0.7).double()
    params, x = torch.randn(2, 5, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    law = likelihood(params)
    assert (law.batch_shape, law.event_shape) == ((5,), (3, 4))
    wanted = dist.Normal(params, likelihood.log_scale.exp()).to_event(2).log_prob(x)
    torch.testing.assert_close(law.log_prob(x), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.expand((2, 5)).log_prob(x), wanted.expand(2, 5), rtol=1e-12, atol=1e-12)
