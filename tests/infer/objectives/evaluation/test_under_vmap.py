"""Distributions and draws of a program under vmap: those of each particle, put together."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.util import is_identically_zero
from torch.distributions import SigmoidTransform, kl_divergence

from pyro_dgm.infer import ELBO, IWAE
from pyro_dgm.infer.objectives.evaluation.runners import UnderVmap
from pyro_dgm.infer.objectives.evaluation.vmapped_distribution import VmappedDistribution

K = 5
ONES = torch.ones(2, 3, dtype=torch.float64)
LAWS = {
    "Normal": lambda a: dist.Normal(a, 1.0),
    "Gamma": lambda a: dist.Gamma(a, 2.0),
    "Beta": lambda a: dist.Beta(a, 2.0),
    "Dirichlet": lambda a: dist.Dirichlet(a),
    "HalfCauchy": lambda a: dist.HalfCauchy(a),
    "StudentT": lambda a: dist.StudentT(4.0, a, 1.0),
    "Exponential": lambda a: dist.Exponential(a),
    "Laplace": lambda a: dist.Laplace(a, 1.0),
    "Uniform": lambda a: dist.Uniform(-a, a),
    "LogNormal": lambda a: dist.LogNormal(a, 0.5),
    "Weibull": lambda a: dist.Weibull(a, 1.5),
    "MultivariateNormal": lambda a: dist.MultivariateNormal(a, torch.eye(3, dtype=a.dtype)),
    "LowRank": lambda a: dist.LowRankMultivariateNormal(a, torch.ones(3, 1, dtype=a.dtype), torch.ones_like(a)),
    "independent": lambda a: dist.Normal(a, 1.0).to_event(1),
    "masked": lambda a: dist.Normal(a, 1.0).mask(torch.tensor([True, False, True])),
    "transformed": lambda a: dist.TransformedDistribution(dist.Normal(a, 1.0), [SigmoidTransform()]),
    "mixture": lambda a: dist.MixtureSameFamily(dist.Categorical(a), dist.Normal(a, 1.0)),
    "Bernoulli": lambda a: dist.Bernoulli(0.3 * a),
    "Categorical": lambda a: dist.Categorical(a),
    "OneHotCategorical": lambda a: dist.OneHotCategorical(a),
    "Poisson": lambda a: dist.Poisson(a),
    "NegativeBinomial": lambda a: dist.NegativeBinomial(a, 0.3),
}


def trace_of(make, shared, parameter):
    """A trace of K particles of a site whose parameter is the same for all, or their own."""

    def program():
        own = 1.0 + pyro.sample("u", dist.Uniform(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("z", make(parameter if shared else parameter * own))

    runner = UnderVmap(K, 2, {}, {}, "cpu")
    return runner.run(program, (), {}, scores=True)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_draws_and_densities_are_those_of_each_particle(law, shared):
    parameter = ONES.clone().requires_grad_()
    trace = trace_of(LAWS[law], shared, parameter)
    site = trace.nodes["z"]
    fn, value = site["fn"], site["value"]
    assert isinstance(fn, VmappedDistribution)
    own = trace.nodes["u"]["value"].reshape(K) + 1.0 if not shared else torch.ones(K, dtype=torch.float64)
    assert own.unique().numel() == (1 if shared else K)
    singles = [LAWS[law](parameter * own[k]) for k in range(K)]
    batch = tuple(singles[0].batch_shape)
    assert fn.batch_shape == (K, *(1,) * (2 - len(batch)), *batch) and fn.event_shape == singles[0].event_shape
    rows = value.reshape(K, *batch, *singles[0].event_shape)
    if fn.has_rsample:
        assert rows.reshape(K, -1)[:, 0].unique().numel() == K  # noise of its own for each
        total = (rows[0] * torch.arange(3)).sum()
        assert torch.autograd.grad(total, parameter, retain_graph=True)[0].abs().sum() > 0
    expected = torch.stack([s.log_prob(rows[k]) for k, s in enumerate(singles)])
    for found in (site.get("unscaled_log_prob", fn.log_prob(value)), fn.log_prob(value)):
        torch.testing.assert_close(found.reshape(expected.shape), expected)
    again = fn()
    assert again.shape == value.shape
    elsewhere = again.detach()
    expected = torch.stack([s.log_prob(elsewhere.reshape(rows.shape)[k]) for k, s in enumerate(singles)])
    torch.testing.assert_close(fn.log_prob(elsewhere).reshape(expected.shape), expected)
    parts, single = fn.score_parts(value), singles[0].score_parts(rows[0])
    for name in ("log_prob", "score_function", "entropy_term"):
        a, b = getattr(parts, name), getattr(single, name)
        assert is_identically_zero(a) == is_identically_zero(b)
        if not is_identically_zero(b):
            torch.testing.assert_close(a[0].reshape(b.shape), b)


@pytest.mark.parametrize("law", ["Normal", "Gamma", "Beta", "Dirichlet", "Bernoulli", "independent", "Categorical"])
def test_divergences_are_those_of_each_particle(law):
    """Torch's of two Bernoulli writes by a mask, which vmap cannot do: each particle is then asked apart."""
    p, q = (trace_of(LAWS[law], False, scale * ONES).nodes for scale in (0.7, 1.2))
    found = kl_divergence(p["z"]["fn"], q["z"]["fn"])
    for k in range(K):
        one, other = (1.0 + nodes["u"]["value"].reshape(K)[k] for nodes in (p, q))
        expected = kl_divergence(LAWS[law](0.7 * one * ONES), LAWS[law](1.2 * other * ONES))
        torch.testing.assert_close(found[k].reshape(expected.shape), expected)


def test_the_draw_of_a_dirichlet_has_torchs_gradient():
    a = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    expected = dist.Dirichlet(a.expand(K, 3)).rsample()

    def program():
        pyro.sample("z", dist.Dirichlet(a))

    torch.manual_seed(0)
    found = UnderVmap(K, 0, {}, {}, "cpu").run(program, (), {}).nodes["z"]["value"]
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(0, 1, 3 * K, dtype=torch.float64).reshape(K, 3)
    slopes = [torch.autograd.grad((weights * z).sum(), a)[0] for z in (found, expected)]
    torch.testing.assert_close(*slopes)
    assert torch.distributions.dirichlet._Dirichlet.__module__.startswith("torch.")  # put back


class InPlaceNoise(dist.TorchDistribution):
    """A distribution whose draw goes on using the tensor that it has filled, which vmap would share."""

    arg_constraints = {}
    support = dist.constraints.real
    has_rsample = True

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def rsample(self, sample_shape=()):
        noise = torch.empty(self.loc.shape)
        noise.normal_()
        return self.loc + noise

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).log_prob(value)

    def expand(self, shape, _instance=None):
        return InPlaceNoise(self.loc.expand(shape))


def test_noise_that_vmap_would_share_is_found_out():
    def model():
        z = pyro.sample("z", InPlaceNoise(torch.zeros(2)).to_event(1))
        pyro.sample("x", dist.Normal(z @ z, 1.0), obs=torch.tensor(0.3))

    def guide():
        pyro.sample("z", InPlaceNoise(torch.zeros(2)).to_event(1))

    with pytest.warns(RuntimeWarning, match="under vmap: RuntimeError: a tensor that all particles share"):
        loss = IWAE(3).loss(model, guide)
    assert loss == loss


def test_bernoulli_divergence_in_an_objective():
    x = torch.tensor([[0.2, 1.0], [-0.5, 0.3], [1.0, 1.0]], dtype=torch.float64)

    def model():
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=x @ w))

    def guide():
        w = pyro.sample("w", dist.Normal(x.new_full((2,), 0.2), 0.7).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=0.5 * (x @ w)))

    torch.manual_seed(0)
    objective = ELBO(4)
    particles = objective.particles(model, guide, (), {})
    assert particles.runner.name == "under vmap"
    w = particles.pairs[0][1].nodes["w"]["value"].reshape(4, 2)
    normal = kl_divergence(dist.Normal(0.2, 0.7), dist.Normal(0.0, 1.0))
    logits = w @ x.T
    expected = -2 * normal - kl_divergence(dist.Bernoulli(logits=0.5 * logits), dist.Bernoulli(logits=logits)).sum(-1)
    torch.testing.assert_close(objective.bound_of(particles), expected.mean(), check_dtype=False)
