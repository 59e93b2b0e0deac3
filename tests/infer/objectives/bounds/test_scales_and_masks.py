"""Scales and masks against the densities written out by hand: what is inside the logarithm, and what counts."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_dgm.analysis import log_likelihood
from pyro_dgm.infer import CUBO, ELBO, IWAE, DReG, RenyiELBO, TraceEnumELBO

Y = torch.tensor([1.0, 2.0, 0.0, 3.0, 0.0], dtype=torch.float64)
SEEN = torch.tensor([True, True, False, True, False])
EXACT = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 4.0).log_prob(Y[SEEN].float()).item()


def normal(loc, scale):
    return dist.Normal(torch.as_tensor(loc, dtype=Y.dtype), torch.as_tensor(scale, dtype=Y.dtype))


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0, dtype=Y.dtype)], ids=["float", "tensor"])
@pytest.mark.parametrize("where", ["observed", "latent", "all"])
@pytest.mark.parametrize(
    ("objective", "of_weights"),
    [
        (ELBO(4, analytic_kl=False), lambda w: w.mean(0)),
        (IWAE(4), lambda w: w.logsumexp(0) - math.log(4)),
        (DReG(4), lambda w: w.logsumexp(0) - math.log(4)),
        (RenyiELBO(4, alpha=0.5), lambda w: ((0.5 * w).logsumexp(0) - math.log(4)) / 0.5),
    ],
    ids=["ELBO", "IWAE", "DReG", "Renyi"],
)
def test_a_scale_that_some_sites_have_is_in_the_weights(objective, of_weights, where, scale):
    """One that all have multiplies the finished bound, if it is a number."""

    def on(site):
        return poutine.scale(scale=scale if where in (site, "all") else 1.0)

    def model(y):
        with on("latent"):
            mu = pyro.sample("mu", normal(0.0, 2.0))
        with pyro.plate("data", len(y)), on("observed"):
            pyro.sample("y", normal(mu, 1.0), obs=y)

    def guide(y):
        with on("latent"):
            pyro.sample("mu", normal(0.7, 0.6))

    objective.structure(model, guide, (Y,), {})
    pyro.set_rng_seed(0)
    mu = normal(0.7, 0.6).expand([4, 1]).sample()
    latent = normal(0.0, 2.0).log_prob(mu)[:, 0] - normal(0.7, 0.6).log_prob(mu)[:, 0]
    observed = normal(mu, 1.0).log_prob(Y).sum(-1)
    s = float(scale)
    inside, outside = {
        "observed": (latent + s * observed, 1.0),
        "latent": (s * latent + observed, 1.0),
        "all": ((latent + observed, s) if isinstance(scale, float) else (s * (latent + observed), 1.0)),
    }[where]
    pyro.set_rng_seed(0)
    assert objective.loss(model, guide, Y) == pytest.approx(-outside * of_weights(inside).item())


def test_the_bound_of_scaled_data_is_exact_for_many_particles():
    """p(mu) p(y | mu)^3 has a normaliser in closed form."""

    def model(y):
        mu = pyro.sample("mu", normal(0.0, 1.0))
        with pyro.plate("data", len(y)), poutine.scale(scale=3.0):
            pyro.sample("y", normal(mu, 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", normal(1.0, 0.5))

    grid = torch.linspace(-8, 8, 20001, dtype=Y.dtype)
    joint = normal(0.0, 1.0).log_prob(grid) + 3 * normal(grid[:, None], 1.0).log_prob(Y).sum(-1)
    exact = torch.trapezoid((joint - joint.max()).exp(), grid).log() + joint.max()
    pyro.set_rng_seed(0)
    assert IWAE(20_000).bound(model, guide, Y).item() == pytest.approx(exact.item(), abs=0.05)


def partly_seen(y, seen):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.uses_param_store
def test_bounds_of_data_partly_seen_are_bounds(auto, scale):
    """Missing values are latents whose prior the model masks where data are seen, and the guide does not."""
    guide = auto(partly_seen, init_scale=scale)
    data = (Y.float(), SEEN)
    pyro.set_rng_seed(0)
    for objective in (ELBO(2000), IWAE(20), TraceEnumELBO(2000)):
        assert objective.bound(partly_seen, guide, *data).item() < EXACT + 0.3
    if scale == 1.0:
        assert CUBO(50_000, n=2).bound(partly_seen, guide, *data).item() > EXACT - 0.3


@pytest.mark.uses_param_store
def test_the_likelihood_of_data_partly_seen():
    def guide(y, seen):
        pyro.sample("mu", dist.Normal(torch.tensor(1.8), 0.7))
        with pyro.plate("data", len(y)):
            pyro.sample("y_unobserved", dist.Normal(torch.full((5,), 1.5), 1.5))

    found = log_likelihood((partly_seen, guide), (Y.float(), SEEN), num_particles=50_000, seed=0)
    assert found.mean == pytest.approx(EXACT, abs=5 * float(found.standard_error) + 0.02)


def test_a_mask_that_both_have_leaves_the_latent_out():
    mask = torch.tensor([True, False, True])
    y = Y[:3]

    def model(y):
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            z = pyro.sample("z", normal(0.0, 1.0))
            pyro.sample("y", normal(z, 0.5), obs=y)

    def guide(y):
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("z", normal(0.3, 40.0))

    pyro.set_rng_seed(0)
    z = normal(0.3, 40.0).expand([2, 3]).sample()
    w = normal(0.0, 1.0).log_prob(z) + normal(z, 0.5).log_prob(y) - normal(0.3, 40.0).log_prob(z)
    objective = IWAE(2)
    objective.structure(model, guide, (y,), {})
    pyro.set_rng_seed(0)
    found = objective.bound(model, guide, y)
    torch.testing.assert_close(found, torch.where(mask, w.logsumexp(0) - math.log(2), w.new_zeros(())))
