"""One contract over every likelihood: what it gives is a Pyro distribution that any site can hold."""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.distributions.torch_distribution import TorchDistributionMixin
from scipy import stats

from pyro_dgm.distributions import (
    BernoulliLikelihood,
    CallableLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulli,
    ContinuousBernoulliLikelihood,
    DiscretizedLogistic,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    StudentTLikelihood,
    likelihood,
)
from pyro_dgm.distributions.likelihoods import LIKELIHOODS

CASES = {
    "bernoulli": BernoulliLikelihood,
    "gaussian-fixed": lambda s: GaussianLikelihood(s, 0.3),
    "gaussian-learned": GaussianLikelihood,
    "gaussian-per-element": lambda s: GaussianLikelihood(s, "per_element"),
    "gaussian-network": lambda s: GaussianLikelihood(s, "network"),
    "student_t": lambda s: StudentTLikelihood(s, df=6.0),
    "student_t-learned": StudentTLikelihood,
    "continuous_bernoulli": ContinuousBernoulliLikelihood,
    "categorical": lambda s: CategoricalLikelihood(s, 5),
    "discretized_logistic": lambda s: DiscretizedLogisticLikelihood(s, 6),
    "discretized_logistic-mixture": lambda s: DiscretizedLogisticLikelihood(s, 6, num_components=3),
    "multinomial": lambda s: MultinomialLikelihood(s, 7),
    "negative_binomial": NegativeBinomialLikelihood,
    "negative_binomial-zeros": lambda s: NegativeBinomialLikelihood(s, zero_inflated=True),
    "callable": lambda s: CallableLikelihood(s, lambda p: dist.Laplace(p, 0.5)),
    "callable-parameters": lambda s: CallableLikelihood(
        s, lambda p: dist.Normal(p.select(-1, 0), p.select(-1, 1).exp()), (*s, 2)
    ),
}
#: those over the real line, the unit interval, and finitely or countably many values
REAL = [c for c in CASES if c.startswith(("gaussian", "student"))]
DISCRETE = {"bernoulli": 2, "categorical": 5, "discretized_logistic": 6, "discretized_logistic-mixture": 6}
COUNTS = [c for c in CASES if c.startswith("negative")]
every = pytest.mark.parametrize("case", list(CASES))


@every
@given(event=st.lists(st.integers(1, 3), max_size=3), batch=st.lists(st.integers(1, 3), max_size=2))
def test_shapes(case, event, batch):
    event = event[:1] or [2] if case == "multinomial" else event
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
    torch.manual_seed(2)
    lik = CASES[case]((3,))
    params = torch.randn(lik.param_shape)
    d = lik(params)
    x = d.sample((20_000,))
    assert ((x.mean(0) - lik.mean(params)) / (x.std(0) / 20_000**0.5)).abs().max() < 4
    if d.has_rsample:
        params.requires_grad_()
        lik(params).rsample().sum().backward()
        assert torch.isfinite(params.grad).all()


def test_all_are_here():
    assert set(LIKELIHOODS) == {c.split("-")[0] for c in CASES} - {"callable"}


def params_of(lik, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(lik.param_shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("case", [*REAL, "continuous_bernoulli"])
def test_density_integrates_to_one(case):
    lik = CASES[case](()).double()
    ends, atol = ((0.0, 1.0), 1e-9) if case.startswith("continuous") else ((-3000.0, 3000.0), 1e-7)
    grid = torch.linspace(*ends, 1_200_001, dtype=torch.float64)
    with torch.no_grad():
        density = lik(params_of(lik)).log_prob(grid).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=atol)


@pytest.mark.parametrize("case", [*DISCRETE, *COUNTS])
def test_probabilities_sum_to_one(case):
    lik = CASES[case]((2,)).double()
    axis = torch.arange(DISCRETE.get(case, 400), dtype=torch.float64)
    d = lik(params_of(lik))
    assert d.log_prob(torch.cartesian_prod(axis, axis)).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_multinomial_sums_to_one_over_data_of_a_total():
    lik = MultinomialLikelihood((3,), 100)
    states = torch.cartesian_prod(*[torch.arange(5, dtype=torch.float64)] * 3)
    for total in (1, 4):
        there = states[states.sum(-1) == total]
        assert lik(params_of(lik)).log_prob(there).exp().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("case", [*REAL, "continuous_bernoulli", *DISCRETE, *COUNTS])
def test_samples_are_those_of_the_density(case):
    # Kolmogorov-Smirnov for densities, chi-square for probabilities: each fails at one in 10 000 seeds.
    torch.manual_seed(1)
    lik = CASES[case](()).double()
    with torch.no_grad():
        d = lik(params_of(lik, seed=3))
        x = d.sample((20_000,))
        if case in (*DISCRETE, *COUNTS):
            values = torch.arange(DISCRETE.get(case, 60), dtype=torch.float64)
            expected = d.log_prob(values).exp() * len(x)
            found = torch.stack([(x == v).sum() for v in values]).double()
            many = expected >= 5
            found, expected = found[many], expected[many]
            assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-4
        else:
            ends = (0.0, 1.0) if case.startswith("continuous") else (-400.0, 400.0)
            grid = torch.linspace(*ends, 400_001, dtype=torch.float64)
            density = d.log_prob(grid).exp()
            cumulative = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, grid)]).numpy()
            found = stats.kstest(x.numpy(), lambda v: np.interp(v, grid.numpy(), cumulative))
            assert found.pvalue > 1e-4


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("callable")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_the_edges(case, dtype):
    lik = CASES[case]((3,)).to(dtype)
    edges = {"bernoulli": (0, 1), "continuous_bernoulli": (0, 1), "categorical": (0, 4)}.get(case, (-1e4, 1e4))
    if case.startswith("discretized"):
        edges = (0, 5)
    if case.startswith(("negative", "multinomial")):
        edges = (0, 1e4)
    for size in (0.0, 1e-3, 30.0):
        for edge in edges:
            params = torch.full(lik.param_shape, size, dtype=dtype)
            params[..., 1] *= -1
            params.requires_grad_()
            log_prob = lik(params).log_prob(torch.full((3,), float(edge), dtype=dtype))
            (grad,) = torch.autograd.grad(log_prob, params)
            assert log_prob.isfinite() and log_prob.dtype == dtype and grad.isfinite().all(), (size, edge)


@every
def test_masks_and_plates(case):
    lik = CASES[case]((3,))
    params = torch.randn(4, *lik.param_shape)
    x = lik(params).sample()
    mask = torch.tensor([True, False, True, False])

    def model():
        with pyro.plate("data", 4):
            pyro.sample("x", lik(params).mask(mask), obs=x)

    total = pyro.poutine.trace(model).get_trace().log_prob_sum()
    torch.testing.assert_close(total, (lik(params).log_prob(x) * mask).sum())


def test_continuous_bernoulli_is_exact_at_every_logit():
    # The integral of e^(l x) over [0, 1] is expm1(l) / l.
    logits = torch.tensor([1e-9, 0.03, 0.0499, 0.0501, 0.3, 5.0, 40.0, 600.0], dtype=torch.float64)
    logits = torch.cat([logits, -logits])
    d = ContinuousBernoulli(logits)
    exact = torch.where(
        logits > 0, -logits - torch.log(-torch.expm1(-logits) / logits), -torch.log(torch.expm1(logits) / logits)
    )
    torch.testing.assert_close(d.log_prob(torch.zeros_like(logits)), exact, rtol=1e-10, atol=1e-10)
    single = ContinuousBernoulli(logits.float()).log_prob(torch.ones(len(logits)))
    torch.testing.assert_close(single.double(), d.log_prob(torch.ones_like(logits)), rtol=2e-6, atol=2e-6)
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    density = d.log_prob(grid).exp()
    torch.testing.assert_close(torch.trapezoid(density * grid, grid, dim=0), d.mean, rtol=1e-6, atol=1e-6)
    spread = torch.trapezoid(density * (grid - d.mean).square(), grid, dim=0)
    torch.testing.assert_close(spread, d.variance, rtol=1e-5, atol=1e-7)
    # quantiles invert the distribution function (e^(l x) - 1) / (e^l - 1)
    u = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)[:, None]
    x, small = d.icdf(u), logits.abs() < 50
    torch.testing.assert_close(
        (torch.expm1(logits * x) / torch.expm1(logits))[:, small], u.expand_as(x)[:, small], rtol=1e-6, atol=1e-6
    )


def test_discretized_logistic_far_from_its_mean():
    d = DiscretizedLogistic(torch.tensor(10.0), torch.tensor(0.05), 256)
    log_prob = d.log_prob(torch.arange(256.0))
    # beyond float32's range of probabilities the slope is that of the tail, 1 / scale for each level
    torch.testing.assert_close(log_prob[100] - log_prob[101], torch.tensor(20.0), rtol=1e-4, atol=0)
    wide = DiscretizedLogistic(torch.tensor(100.0, dtype=torch.float64), torch.tensor(30.0, dtype=torch.float64), 256)
    levels = torch.arange(256.0, dtype=torch.float64)
    p = wide.log_prob(levels).exp()
    torch.testing.assert_close(wide.mean, (p * levels).sum())
    torch.testing.assert_close(wide.variance, (p * (levels - wide.mean).square()).sum())


@pytest.mark.parametrize(
    "case", ["continuous_bernoulli", "categorical", "discretized_logistic", "multinomial", "negative_binomial"]
)
def test_values_outside_the_support_are_refused(case):
    bad = {"continuous_bernoulli": 1.5, "categorical": 5.0, "discretized_logistic": 2.5}.get(case, -1.0)
    with pytest.raises(ValueError, match="x holds values outside|x must hold"):
        CASES[case]((3,)).check(torch.tensor([0.0, bad, 1.0]))


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
    assert repr(lik)
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
    with pytest.raises(ValueError, match="event_shape must be"):
        MultinomialLikelihood((3, 2))
    with pytest.raises(ValueError, match="df must be above 1.1"):
        StudentTLikelihood((3,), df=1.0)
    with pytest.raises(TypeError, match="zero_inflated must be"):
        NegativeBinomialLikelihood((3,), zero_inflated=1)
    with pytest.raises(ValueError, match="num_levels must be an integer of at least 2"):
        CategoricalLikelihood((3,), 1)
    with pytest.raises(ValueError, match="num_components"):
        DiscretizedLogisticLikelihood((3,), 8, 0)
    with pytest.raises(ValueError, match=r"outside \{0, 1\}.*dynamic_binarization"):
        BernoulliLikelihood((3,)).check(torch.tensor([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="must be floating point"):
        BernoulliLikelihood((3,)).check(torch.tensor([0, 1, 1]))
