"""Flow models: the density, sampling, conditional densities, and the bounds for data with levels."""

import functools
import math

import pytest
import torch

import pyro_dgm
from pyro_dgm.distributions.transforms import Compose, ElementwiseAffine
from pyro_dgm.infer import ELBO, IWAE
from pyro_dgm.models import FAMILIES, FlowModel


def moved(flow, spread=0.2):
    """A flow whose parameters are not at their start, in double precision."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(torch.randn_like(p) * spread)
    return flow.double()


LAYERS = ["additive_coupling", "affine_coupling", "spline_coupling", "affine_autoregressive", "spline_autoregressive"]


@pytest.mark.parametrize("name", LAYERS)
def test_density(name):
    """It integrates to one, is the ELBO, and agrees with its own draws: their mean is the integral's."""
    flow = moved(FlowModel((2,), name, 2, (16,)))
    side = torch.linspace(-12, 12, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        density = flow.log_prob(grid).exp() * (24 / 600) ** 2
    assert density.sum().item() == pytest.approx(1.0, abs=2e-3)
    x = flow.sample(20_000, seed=0)
    error = (x.mean(0) - (density[:, None] * grid).sum(0)) / (x.std(0) / 20_000**0.5)
    assert error.abs().max() < 4
    torch.testing.assert_close(ELBO().bound(flow.model, flow.guide, x[:7]), flow.log_prob(x[:7]).detach())
    assert pyro_dgm.analysis.log_likelihood(flow, x[:7], method="exact").values == pytest.approx(
        flow.log_prob(x[:7]).detach().numpy()
    )


def test_fit_finds_a_gaussian():
    torch.manual_seed(0)
    chol = torch.tensor([[1.0, 0.0], [0.8, 0.5]])
    x = torch.randn(2000, 2) @ chol.T + torch.tensor([1.0, -2.0])
    flow = FlowModel((2,), "affine_autoregressive", 1, ()).standardize(x)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    run = pyro_dgm.fit(flow, x, epochs=200, batch_size=2000, seed=0, progress=False, optimizer=adam)
    best = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0)).log_prob(x).mean()
    # One affine autoregressive layer holds every Gaussian: maximum likelihood is that of its moments.
    assert run.history["train"][-1] == pytest.approx(float(best), abs=2e-3)
    assert flow.log_prob(x).mean().item() == pytest.approx(float(best), abs=2e-3)


@pytest.mark.parametrize("kind", ["classes", "vectors"])
def test_conditional_density(kind):
    options = {"num_classes": 3} if kind == "classes" else {"context_dim": 3}
    flow = moved(FlowModel((2,), "affine_coupling", 2, (8,), **options))
    x = torch.randn(6, 2, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    vectors = torch.eye(3, dtype=torch.float64)[classes]
    context = classes if kind == "classes" else vectors
    found = flow.log_prob(x, context)
    for i in range(6):
        torch.testing.assert_close(found[i : i + 1], flow.log_prob(x[i : i + 1], context[i : i + 1]))
    assert not torch.allclose(found, flow.log_prob(x, context.flip(0)))
    torch.testing.assert_close(ELBO().bound(flow.model, flow.guide, x, context), found.detach())
    assert flow.sample(6, context, seed=0).shape == (6, 2)
    with pytest.raises(TypeError, match="conditional on"):
        flow.log_prob(x)


def test_levels():
    """The bound of dequantisation is below the probability of a level, and IWAE comes to it."""
    flow = moved(FlowModel((1,), "spline_autoregressive", 1, (8,), num_levels=4), 0.5)
    fine = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    with torch.no_grad():
        density = flow.distribution().log_prob(fine[:, None]).exp() / 40_000
    probability = density.reshape(4, -1).sum(1)
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-3)
    x = torch.arange(4.0, dtype=torch.float64)[:, None]
    torch.manual_seed(0)
    many = IWAE(20_000).bound(flow.model, flow.guide, x)
    torch.testing.assert_close(many, probability.log(), rtol=0, atol=0.02)
    bound = ELBO().bound(flow.model, flow.guide, x.repeat(2000, 1)).reshape(2000, 4)
    error = bound.std(0) / 2000**0.5
    expected = (density.reshape(4, -1) * 40_000 / 4).log().mean(1)
    assert ((bound.mean(0) - expected).abs() < 4 * error + 1e-9).all()
    assert (expected < probability.log()).all()
    draws = flow.sample(20_000, seed=0)
    counts = torch.stack([(draws == k).double().mean() for k in range(4)])
    assert ((counts - probability) / (probability * (1 - probability) / 20_000).sqrt()).abs().max() < 4
    assert flow.bits_per_dim(many).shape == (4,)
    assert flow.bits_per_dim(torch.tensor(-math.log(2.0))).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="log_prob is exact for continuous data only"):
        flow.log_prob(x)


def test_standardize():
    torch.manual_seed(0)
    x = torch.randn(500, 2, 3) * 7 + 100
    flow = FlowModel((2, 3), "spline_coupling", 2, (8,)).standardize(x)
    noise = flow.flow.inv(x)
    assert noise.mean(0).abs().max() < 1e-4 and (noise.std(0, correction=0) - 1).abs().max() < 1e-3
    levels = torch.randint(0, 16, (500, 4)).float()
    flow = FlowModel((4,), "spline_coupling", 2, (8,), num_levels=16).standardize(levels)
    run = pyro_dgm.fit(flow, levels, epochs=2, seed=0, progress=False)
    assert math.isfinite(run.history["train"][-1])


@pytest.mark.parametrize("options", [{}, {"num_levels": 8}, {"num_classes": 3}, {"options": {"num_bins": 4}}])
def test_config_rebuilds(options):
    flow = FlowModel((3,), "spline_coupling", 2, (8,), **options)
    twin = FAMILIES["FlowModel"](**flow.config())
    twin.load_state_dict(flow.state_dict())
    assert twin.config() == flow.config()


def test_a_transform_of_your_own():
    flow = FlowModel((2,), Compose([ElementwiseAffine(2), ElementwiseAffine(2)]))
    x = torch.randn(4, 2)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(flow.log_prob(x), expected)
    assert flow.config()["transform"] == "custom"


def test_bad_input():
    with pytest.raises(ValueError, match="transform must be one of .*spline_coupling.*, got 'wave'"):
        FlowModel((2,), "wave")
    with pytest.raises(TypeError, match="transform must be a name, .* got int"):
        FlowModel((2,), 3)
    with pytest.raises(ValueError, match=r"transform must give events of shape \(2,\), but it gives \(3,\)"):
        FlowModel((2,), ElementwiseAffine(3))
    with pytest.raises(ValueError, match="num_levels"):
        FlowModel((2,), num_levels=1)
    flow = FlowModel((2,), num_levels=4)
    with pytest.raises(ValueError, match=r"x must hold levels 0, ..., 3, got values from 0 to 4"):
        flow.check_batch(torch.tensor([[0.0, 4.0]]))
    with pytest.raises(ValueError, match="x must have shape"):
        flow.log_prob(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="not finite"):
        FlowModel((2,)).log_prob(torch.full((3, 2), math.nan))
