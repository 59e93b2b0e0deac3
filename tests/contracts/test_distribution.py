"""One contract over every likelihood: what it gives is a Pyro distribution that any site can hold."""

import json

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_dgm.distributions import BernoulliLikelihood, CallableLikelihood, GaussianLikelihood, likelihood

CASES = {
    "bernoulli": BernoulliLikelihood,
    "gaussian-fixed": lambda s: GaussianLikelihood(s, 0.3),
    "gaussian-learned": GaussianLikelihood,
    "gaussian-per-element": lambda s: GaussianLikelihood(s, "per_element"),
    "gaussian-network": lambda s: GaussianLikelihood(s, "network"),
    "callable": lambda s: CallableLikelihood(s, lambda p: dist.Laplace(p, 0.5)),
    "callable-parameters": lambda s: CallableLikelihood(
        s, lambda p: dist.Normal(p.select(-1, 0), p.select(-1, 1).exp()), (*s, 2)
    ),
}
every = pytest.mark.parametrize("case", list(CASES))


@every
@given(event=st.lists(st.integers(1, 3), max_size=3), batch=st.lists(st.integers(1, 3), max_size=2))
def test_shapes(case, event, batch):
    lik = CASES[case](tuple(event))
    d = lik(torch.randn((*batch, *lik.param_shape)))
    assert isinstance(d, TorchDistributionMixin)
    assert d.batch_shape == tuple(batch)
    assert d.event_shape == tuple(event)
    x = d.sample()
    assert d.log_prob(x).shape == tuple(batch)
    assert d.support.check(x).all()
    assert d.expand((2, *batch)).sample().shape == (2, *batch, *event)
    assert lik.mean(torch.randn((*batch, *lik.param_shape))).shape == (*batch, *event)


@every
def test_sample_moments_match_mean(case):
    torch.manual_seed(0)
    lik = CASES[case]((3,))
    params = torch.randn(lik.param_shape)
    d = lik(params)
    x = d.sample((20_000,))
    assert ((x.mean(0) - lik.mean(params)) / (x.std(0) / 20_000**0.5)).abs().max() < 4
    if d.has_rsample:
        params.requires_grad_()
        lik(params).rsample().sum().backward()
        assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("gaussian")])
def test_gaussian_density_integrates_to_one(case):
    lik = CASES[case](()).double()
    grid = torch.linspace(-60, 60, 24001, dtype=torch.float64)
    density = lik(torch.zeros(lik.param_shape, dtype=torch.float64)).log_prob(grid).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-9)


def test_bernoulli_density_sums_to_one():
    lik = BernoulliLikelihood((2,)).double()
    states = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    d = lik(torch.tensor([0.3, -2.0], dtype=torch.float64))
    assert d.log_prob(states).exp().sum().item() == pytest.approx(1.0)


@every
def test_configuration(case):
    lik = CASES[case]((3,))
    config = json.loads(json.dumps(lik.config()))
    if case.startswith("callable"):
        lik.check(torch.zeros(2, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match="cannot rebuild"):
            likelihood(config, (3,))
        return
    again = likelihood(config, (3,))
    again.load_state_dict(lik.state_dict())
    params, x = torch.randn(lik.param_shape), torch.ones(3)
    assert torch.equal(again(params).log_prob(x), lik(params).log_prob(x))
    with pytest.raises(ValueError, match="likelihood has event shape"):
        likelihood(lik, (4,))
    with pytest.raises(ValueError, match="floating point"):
        lik.check(torch.zeros(2, 3, dtype=torch.int64))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="likelihood must be one of"):
        likelihood("poisson?", (3,))
    with pytest.raises(TypeError, match="likelihood must be a name or a callable"):
        likelihood(3, (3,))
    with pytest.raises(ValueError, match="scale must be positive, got -1"):
        GaussianLikelihood((3,), -1.0)
    with pytest.raises(ValueError, match="scale must be a positive number or one of"):
        GaussianLikelihood((3,), "huge")
    with pytest.raises(ValueError, match=r"outside \{0, 1\}.*dynamic_binarization"):
        BernoulliLikelihood((3,)).check(torch.tensor([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="must be floating point"):
        BernoulliLikelihood((3,)).check(torch.tensor([0, 1, 1]))
