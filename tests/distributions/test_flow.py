"""Flow distributions at sample sites, and sites in the space of the base."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal
from torch.distributions.transforms import ExpTransform

import pyro_dgm
from pyro_dgm.distributions import FlowDistribution, FlowReparam, Rounded
from pyro_dgm.distributions.transforms import AffineCoupling, Compose, ElementwiseAffine, Permutation, Wrapped
from pyro_dgm.infer import ELBO

D = torch.float64


def bent(context_dim=0, spread=0.4):
    torch.manual_seed(3)
    parts = [AffineCoupling(2, hidden=(8,), context_dim=context_dim), Permutation(2), AffineCoupling(2, hidden=(8,))]
    flow = Compose(parts).to(D)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(torch.randn_like(p) * spread)
    return flow.requires_grad_(False)


def affine():
    """The flow of N(m, diag(s^2)), m = (1, -1), s = (2, 0.5)."""
    t = ElementwiseAffine(2).to(D)
    with torch.no_grad():
        t.bias.copy_(torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=D))
        t.bias[2:].log_()
    return t.requires_grad_(False)


def test_it_is_the_transformed_distribution():
    d = FlowDistribution(bent())
    plain = dist.TransformedDistribution(dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1), [bent()])
    x = torch.randn(4, 3, 2, dtype=D)
    torch.testing.assert_close(d.log_prob(x), plain.log_prob(x))
    torch.manual_seed(0)
    draws = d.rsample((5,))
    torch.manual_seed(0)
    torch.testing.assert_close(draws, plain.rsample((5,)))
    torch.manual_seed(0)
    same, log_prob = d.rsample_and_log_prob((5,))
    torch.testing.assert_close(same, draws)
    torch.testing.assert_close(log_prob, d.log_prob(draws))


def test_shapes_and_support():
    context = torch.randn(4, 3, dtype=D)
    d = FlowDistribution(bent(3), context=context)
    assert d.batch_shape == (4,) and d.event_shape == (2,)
    assert d.sample((5,)).shape == (5, 4, 2) and d.log_prob(torch.zeros(2, dtype=D)).shape == (4,)
    assert d.expand((6, 4)).sample().shape == (6, 4, 2)
    zero = torch.zeros(2, dtype=D)
    torch.testing.assert_close(d.expand((6, 4)).log_prob(zero)[3], d.log_prob(zero))
    positive = FlowDistribution(Compose([bent(), Wrapped(ExpTransform(), (2,))]), validate_args=True)
    assert positive.support.event_dim == 1 and bool(positive.support.check(positive.sample((9,))).all())
    with pytest.raises(ValueError, match="support"):
        positive.log_prob(-torch.ones(2, dtype=D))


def test_bad_input():
    with pytest.raises(TypeError, match="transform must be a transform of pyro_dgm"):
        FlowDistribution(ExpTransform())
    with pytest.raises(ValueError, match=r"takes a context of shape batch \+ \(3,\), got none"):
        FlowDistribution(bent(3))
    with pytest.raises(ValueError, match="takes no context, got one of shape"):
        FlowDistribution(bent(), context=torch.zeros(3))
    with pytest.raises(ValueError, match=r"base must have the flow's event shape \(2,\), got \(3,\)"):
        FlowDistribution(bent(), dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pytest.raises(TypeError, match="FlowReparam: site 'z' must have a FlowDistribution, got Normal"):
        poutine.reparam(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), config={"z": FlowReparam()})()


def noisy(prior, x):
    """A latent with a flow as its prior, seen with unit noise."""
    z = pyro.sample("z", prior)
    return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


X = torch.tensor([0.5, 0.5], dtype=D)
# The posterior of N(m, s^2) with one observation of unit variance.
S2 = torch.tensor([4.0, 0.25], dtype=D)
MEAN = (torch.tensor([1.0, -1.0], dtype=D) / S2 + X) / (1 / S2 + 1)
SCALE = (1 / (1 / S2 + 1)).sqrt()


@pytest.mark.parametrize("reparam", [False, True])
@pytest.mark.parametrize("method", ["hmc", "chees", "mala"])
def test_samplers_find_the_exact_posterior(method, reparam):
    prior = FlowDistribution(affine())

    def model(x):
        return noisy(prior, x)

    program = poutine.reparam(model, config={"z": FlowReparam()}) if reparam else model
    post = pyro_dgm.sample_posterior(
        program, X, method=method, num_samples=500, num_chains=8, warmup_steps=300, seed=0, progress=False
    )
    z = post.samples["z"] if not reparam else prior.transform(post.samples["z_base"].to(D))
    z = z.to(D)
    assert z.shape == (8, 500, 2)
    per_chain = z.mean(1)
    error = per_chain.std(0) / 8**0.5
    assert ((z.mean((0, 1)) - MEAN).abs() / error).max() < 4
    assert (z.std((0, 1)) / SCALE - 1).abs().max() < 0.1


@pytest.mark.parametrize("reparam", [False, True])
def test_an_automatic_guide_reaches_the_evidence(reparam):
    prior = FlowDistribution(affine())

    def model(x):
        return noisy(prior, x)

    program = poutine.reparam(model, config={"z": FlowReparam()}) if reparam else model
    torch.set_default_dtype(D)
    try:
        guide = AutoMultivariateNormal(program)
        pyro_dgm.fit((program, guide), X, epochs=300, seed=0, progress=False, objective=ELBO(16), num_data=1,
                     optimizer=lambda p: torch.optim.Adam(p, lr=0.03))  # fmt: skip
        with torch.no_grad():
            found = torch.stack([torch.as_tensor(-ELBO(64).loss(program, guide, X)) for _ in range(20)])
    finally:
        torch.set_default_dtype(torch.float32)
    evidence = dist.Normal(torch.tensor([1.0, -1.0], dtype=D), (S2 + 1).sqrt()).log_prob(X).sum()
    assert float(found.mean()) == pytest.approx(float(evidence), abs=0.01)


def test_the_reparameterised_program_has_the_same_density():
    prior = FlowDistribution(bent())
    model = poutine.reparam(lambda: noisy(prior, X), config={"z": FlowReparam()})
    torch.manual_seed(0)
    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    base, z = trace.nodes["z_base"]["value"], trace.nodes["z"]["value"]
    torch.testing.assert_close(z, prior.transform(base))
    expected = prior.base.log_prob(base) + dist.Normal(z, 1.0).to_event(1).log_prob(X)
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    plain = poutine.condition(lambda: noisy(prior, X), {"z": z})
    log_det = prior.transform.forward_and_log_det(base)[1]
    torch.testing.assert_close(poutine.trace(plain).get_trace().log_prob_sum(), expected - log_det)


def test_rounded():
    v = torch.tensor([[0.01, 0.26], [0.99, 0.74]], dtype=D)
    d = Rounded(v, 4, event_dim=1)
    assert d.batch_shape == (2,) and d.sample().tolist() == [[0, 1], [3, 2]]
    assert d.log_prob(d.sample((3,))).eq(0).all() and d.log_prob(d.sample((3,))).shape == (3, 2)
    assert d.log_prob(torch.tensor([0.0, 2.0], dtype=D)).tolist() == [-torch.inf, -torch.inf]
    assert d.expand((3, 2)).log_prob(d.sample()).shape == (3, 2) and d.support.check(d.sample()).all()
