"""Flows as models: densities against closed forms and quadrature, dequantisation, context."""

import functools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_dgm
from pyro_dgm.distributions.dequantization import IntoLevels
from pyro_dgm.distributions.transforms import ElementwiseAffine, Spline
from pyro_dgm.infer import ELBO, IWAE, DReG
from pyro_dgm.models import FlowModel

adam = functools.partial(torch.optim.Adam, lr=0.02)


def moved(model):
    """The model in float64, its parameters not at their start."""
    torch.manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.3 if name.startswith("flow") else 0.05))
    return model


def test_an_elementwise_flow_is_a_normal():
    x = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]) + 3
    flow = FlowModel((3,), "elementwise_affine", 1).double()
    flow.initialize(x)
    exact = dist.Normal(x.mean(0), x.std(0)).to_event(1).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), exact)
    torch.testing.assert_close(flow.bits_per_dim(x), -exact / (3 * math.log(2)))
    draws = flow.sample(20_000, seed=0)
    assert ((draws.mean(0) - x.mean(0)) / (x.std(0) / 20_000**0.5)).abs().max() < 4


def test_every_bound_is_the_likelihood():
    flow = moved(FlowModel((2, 3), num_layers=2, hidden=(8,)))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for objective in (ELBO(), IWAE(3), DReG(2)):
        torch.testing.assert_close(objective.bound(flow.model, flow.guide, x), flow.log_prob(x))
    found = pyro_dgm.analysis.log_likelihood(flow, x, method="exact")
    torch.testing.assert_close(torch.as_tensor(found.values), flow.log_prob(x).detach())


def test_the_density_integrates_to_one():
    flow = moved(FlowModel((2,), num_layers=2, hidden=(8,)))
    side = torch.linspace(-15, 15, 601, dtype=torch.float64)
    with torch.no_grad():
        total = flow.log_prob(torch.cartesian_prod(side, side)).exp().sum() * 0.05**2
    assert float(total) == pytest.approx(1.0, abs=2e-3)


def test_training_finds_two_modes():
    torch.manual_seed(0)
    signs = torch.randint(2, (1000, 1)) * 2 - 1
    x = torch.cat([3.0 * signs + 0.5 * torch.randn(1000, 1), 0.5 * torch.randn(1000, 1)], -1)
    truth = math.log(0.5) - 2 * math.log(0.5) - math.log(2 * math.pi) - 1
    flow = FlowModel((2,), num_layers=2, hidden=(32,), options={"num_bins": 8})
    flow.initialize(x)
    start = float(flow.log_prob(x).mean().detach())
    pyro_dgm.fit(flow, x, objective=ELBO(), epochs=30, batch_size=200, optimizer=adam, seed=0, progress=False)
    assert start < truth - 0.3
    assert abs(float(flow.log_prob(x).mean().detach()) - truth) < 0.1


def test_context():
    flow = moved(FlowModel((2,), num_layers=2, hidden=(8,), num_classes=3))
    x, y = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    value = flow.log_prob(x, y)
    for i in range(4):
        torch.testing.assert_close(flow.log_prob(x[i : i + 1], y[i : i + 1])[0], value[i])
    assert not torch.isclose(flow.log_prob(x[:1], y[1:2])[0], value[0])
    torch.testing.assert_close(ELBO().bound(flow.model, flow.guide, x, y), value)
    assert flow.sample(3, torch.tensor([0, 1, 2]), seed=0).shape == (3, 2)
    with pytest.raises(TypeError, match="conditional on classes"):
        flow.log_prob(x)
    vectors = moved(FlowModel((2,), "spline_autoregressive", 2, (8,), context_dim=3))
    assert vectors.log_prob(x, torch.zeros(4, 3, dtype=torch.float64)).shape == (4,)
    with pytest.raises(ValueError, match=r"shape \(4, 3\)"):
        vectors.check_batch(x, torch.zeros(4, 2))


class TestDequantisation:
    def quadrature(self, model, x, num=4000):
        """The probability of integers ``x`` of one dimension, by the midpoint rule."""
        noise = (torch.arange(num, dtype=torch.float64) + 0.5) / num
        return model.distribution().log_prob((x + noise)[..., None]).exp().mean(-1)

    @pytest.mark.parametrize("kind", ["uniform", "variational"])
    def test_bounds_of_a_probability(self, kind):
        model = moved(FlowModel((1,), "spline", 2, dequantize=kind, num_levels=4))
        x = torch.arange(4, dtype=torch.float64)[:, None]
        exact = self.quadrature(model, x)
        assert float(exact.sum().detach()) == pytest.approx(1.0, abs=1e-4)
        log_p = exact.log().detach()
        torch.manual_seed(0)
        with torch.no_grad():
            draws = torch.stack([-model.bits_per_dim(x, seed=i) * math.log(2) for i in range(300)])
            objective = torch.stack([ELBO().bound(model.model, model.guide, x) for _ in range(300)])
        error = draws.std(0) / 300**0.5
        assert (draws.mean(0) < log_p + 4 * error).all()
        assert ((draws.mean(0) - objective.mean(0)) / (error * 2**0.5)).abs().max() < 4
        estimate = pyro_dgm.analysis.log_likelihood(model, x, num_particles=5000, seed=0)
        z = (torch.as_tensor(estimate.values) - log_p) / torch.as_tensor(estimate.standard_error)
        assert z.abs().max() < 4

    def test_the_noise_of_the_guide_is_normalised(self):
        model = moved(FlowModel((1,), dequantize="variational", transform="spline", num_levels=8))
        x = torch.tensor([[0.0], [5.0], [7.0]], dtype=torch.float64)
        noise = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        density = model.noise_distribution(x).log_prob(x + noise[:, None, None]).exp()
        torch.testing.assert_close(density.mean(0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-3)
        assert not torch.allclose(density, torch.ones_like(density), atol=0.02)

    def test_variational_noise_is_tighter(self):
        """Binary data leave a density with a steep edge, which uniform noise fills badly."""
        torch.manual_seed(0)
        x = torch.bernoulli(torch.tensor([0.95, 0.2]).expand(500, 2))
        bits = {}
        for kind in ("uniform", "variational"):
            torch.manual_seed(0)
            model = FlowModel((2,), "affine_coupling", 2, (16,), dequantize=kind, num_levels=2)
            model.initialize(x)
            pyro_dgm.fit(model, x, objective=ELBO(), epochs=40, batch_size=100, optimizer=adam, seed=0, progress=False)
            bits[kind] = float(model.bits_per_dim(x.repeat(20, 1), seed=0).mean().detach())
        entropy = sum(-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in x.mean(0).tolist()) / 2
        assert entropy < bits["variational"] < bits["uniform"] - 0.03

    def test_samples_are_levels(self):
        model = moved(FlowModel((2, 2), dequantize="uniform", num_levels=5))
        draws = model.sample(200, seed=0)
        assert set(draws.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0} and len(draws.unique()) > 2
        assert model.bits_per_dim(draws.long(), seed=0).shape == (200,)

    def test_rounding_loses_no_datum(self):
        """In single precision, noise near one is rounded up to the next level, at the end of the cell."""
        model = FlowModel((4000,), "elementwise_affine", 1, dequantize="uniform")
        x = torch.full((50, 4000), 255.0)
        assert torch.isfinite(model.bits_per_dim(x, num_particles=5, seed=0)).all()
        assert torch.isfinite(ELBO().bound(model.model, model.guide, x)).all()
        onto = IntoLevels(3, 256)
        value, log_det = onto.inverse_and_log_det(torch.tensor([0.0, 256.0, 128.0]))
        assert torch.isfinite(value).all() and torch.isfinite(log_det)

    def test_bad_values_are_named(self):
        model = FlowModel((2,), dequantize="uniform", num_levels=4)
        for bad in (torch.tensor([[0.5, 1.0]]), torch.tensor([[4.0, 1.0]]), torch.tensor([[-1.0, 1.0]])):
            with pytest.raises(ValueError, match="x must hold integers from 0 to 3"):
                model.check_batch(bad)
        with pytest.raises(ValueError, match="integral of the density"):
            model.log_prob(torch.ones(2, 2))
        with pytest.raises(ValueError, match="give dequantize="):
            FlowModel((2,)).noise_distribution(torch.ones(2, 2))


def test_a_base_of_the_users():
    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.df = nn.Parameter(torch.tensor(3.0))

        def forward(self):
            return dist.StudentT(self.df, torch.zeros(2), 1.0).to_event(1)

    x = torch.randn(4, 2)
    model = FlowModel((2,), ElementwiseAffine(2), base=Base())
    torch.testing.assert_close(model.log_prob(x), dist.StudentT(3.0).log_prob(x).sum(-1))
    ELBO()(model.model, model.guide)(x).backward()
    assert model.base.df.grad is not None
    assert model.config()["base"] == model.config()["transform"] == "custom"


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="dequantize must be None, 'uniform' or 'variational', got 'flow'"):
        FlowModel((2,), dequantize="flow")
    with pytest.raises(ValueError, match="transform must be one of"):
        FlowModel((2,), "coupling")
    with pytest.raises(TypeError, match="base must be a distribution"):
        FlowModel((2,), base=3)
    with pytest.raises(ValueError, match="num_levels"):
        FlowModel((2,), dequantize="uniform", num_levels=1)
    with pytest.raises(ValueError, match="a part that starts from data"):
        FlowModel((2,), Spline(2)).initialize(torch.randn(5, 2))
    with pytest.raises(ValueError, match="at least two data"):
        FlowModel((2,)).initialize(torch.randn(1, 2))
