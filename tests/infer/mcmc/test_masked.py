"""Masked latents that nothing reads follow their prior; masked data may be NaN."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_dgm
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential

DTYPE = torch.float64
Y = torch.tensor([1.0, 2.0, 0.0, 3.0, 0.0], dtype=DTYPE)
SEEN = torch.tensor([True, True, False, True, False])


def t(value):
    return torch.tensor(value, dtype=DTYPE)


def imputed(y, seen):
    mu = pyro.sample("mu", dist.Normal(t(0.0), 2.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


def by_handler(y, seen):
    mu = pyro.sample("mu", dist.Normal(t(0.0), 2.0))
    with pyro.plate("data", 5):
        with poutine.mask(mask=~seen):
            z = pyro.sample("y_unobserved", dist.Normal(mu, 1.0))
        with poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        pyro.deterministic("both", torch.where(seen, y, z))


def by_distribution(y, seen):
    mu = pyro.sample("mu", dist.Normal(t(0.0), 2.0))
    pyro.sample("y_unobserved", dist.Normal(mu, torch.ones(5, dtype=DTYPE)).mask(~seen).to_event(1))
    pyro.sample("y", dist.Normal(mu, torch.ones(5, dtype=DTYPE)).mask(seen).to_event(1), obs=y)


def constrained(y, seen):
    """Other coordinates, and a prior of more than one number a datum."""
    mu = pyro.sample("mu", dist.Normal(t(0.0), 2.0))
    with pyro.plate("data", 5), poutine.mask(mask=~seen):
        pyro.sample("y_unobserved", dist.LogNormal(mu, 1.0))
        pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=DTYPE)))
    with pyro.plate("data again", 5), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


MODELS = [imputed, by_handler, by_distribution, constrained]
#: of mu given the three data seen
MEAN, SD = float(Y[SEEN].sum()) / 3.25, 3.25**-0.5


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("which", [SEEN, torch.ones(5).bool(), torch.zeros(5).bool()], ids=["some", "all", "none"])
def test_the_density_is_that_of_the_model_with_priors_for_what_is_masked(model, which):
    """Without a mask on the latent there is no flat direction, and the same posterior of mu: so it is computed."""
    potential = ModelPotential(model, (Y, which), {})

    class Unmasked(poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"] in potential.latents:
                msg["mask"] = None
                while isinstance(msg["fn"], dist.Independent | dist.MaskedDistribution):
                    msg["fn"] = msg["fn"].base_dist

    points = {k: torch.randn((2, *v.shape), dtype=DTYPE) for k, v in potential.latents.items()}
    values, log_det = potential.constrain(points)
    for c in range(2):
        given = {k: v[c] for k, v in values.items()}
        with Unmasked():
            trace = poutine.trace(poutine.condition(model, data=given)).get_trace(Y, which)
        expected = sum(
            dist.util.scale_and_mask(s["fn"].log_prob(s["value"]), mask=s["mask"]).sum()
            for s in trace.nodes.values()
            if s["type"] == "sample"
            and not s["infer"].get("_deterministic")
            and s["name"] not in ("data", "data again")
        )
        torch.testing.assert_close(-potential(points)[0][c], expected + log_det[c])


@pytest.mark.parametrize("method", ["hmc", "chees", "random-walk", "nuts-numpyro"])
def test_draws_of_masked_elements_are_of_the_prior(method):
    post = pyro_dgm.sample_posterior(
        imputed, Y, SEEN, method=method, num_samples=300, num_chains=8, seed=0, progress=False
    )
    mu, rest = post["mu"], post["y_unobserved"] - post["mu"][..., None]
    tolerance = 0.5 if method == "random-walk" else 0.2
    assert abs(float(mu.mean()) - MEAN) < tolerance * SD
    assert abs(float(mu.std()) - SD) < tolerance * SD
    assert bool((rest.std((0, 1)) - 1.0).abs().max() < tolerance)


def test_a_masked_latent_that_is_read_stays_flat():
    """``.mask(False)`` is how Pyro's users write an improper prior; so is a mask over a plate."""

    def model():
        a = pyro.sample("a", dist.Normal(t(0.0), 1.0).mask(False))
        with pyro.plate("two", 2), poutine.mask(mask=torch.tensor([True, False])):
            b = pyro.sample("b", dist.Normal(t(0.0), 1.0))
        pyro.factor("f", dist.Normal(3.0, 0.5).log_prob(a) + dist.Normal(2.0, 1.0).log_prob(b).sum())

    potential = ModelPotential(model, (), {})
    a, b = torch.randn(4, dtype=DTYPE), torch.randn(4, 2, dtype=DTYPE)
    expected = dist.Normal(3.0, 0.5).log_prob(a) + dist.Normal(2.0, 1.0).log_prob(b).sum(-1)
    torch.testing.assert_close(-potential({"a": a, "b": b})[0], expected + dist.Normal(0.0, 1.0).log_prob(b[:, 0]))


def test_a_masked_prior_that_depends_on_a_sum_is_refused():
    def model():
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("two", 2):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            with poutine.mask(mask=torch.tensor([True, False])):
                pyro.sample("z", dist.Normal(3.0 * k, 1.0))

    with pytest.raises(ValueError, match="'z' is masked and its prior depends on a discrete latent"):
        ModelPotential(model, (), {})


# NaN in data


def latent():
    return pyro.sample("m", dist.Normal(t(0.0), 1.0))


def of_numbers(y, seen):
    m = latent()
    with pyro.plate("n", len(y)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def of_events(y, seen):
    m = latent()
    with pyro.plate("n", len(y)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Dirichlet(torch.ones(2, dtype=DTYPE) * m.exp()), obs=torch.stack([y, 1.0 - y], -1))


def of_a_sum(y, seen):
    m = latent()
    with pyro.plate("n", len(y)):
        k = pyro.sample("k", dist.Bernoulli(t(0.3)))
        with poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(m + 2.0 * k, 1.0), obs=y)


def of_a_masked_distribution(y, seen):
    m = latent()
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(m, 1.0).mask(seen), obs=y)


def of_masked_elements(y, seen):
    pyro.sample("y", dist.Normal(latent(), torch.ones(3, dtype=DTYPE)).mask(seen).to_event(1), obs=y)


def of_obs_mask(y, seen):
    m = latent()
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y, obs_mask=seen)


NAN = [of_numbers, of_events, of_a_sum, of_a_masked_distribution, of_masked_elements, of_obs_mask]


@pytest.mark.parametrize("model", NAN, ids=lambda m: m.__name__)
def test_masked_data_may_be_nan(model):
    """Value and gradient are those with a number in their place, whatever it is."""
    seen = torch.tensor([False, True, True])
    found = ModelPotential(model, (t([float("nan"), 0.6, 0.3]), seen), {})
    points = {k: torch.randn((2, *v.shape), dtype=DTYPE) for k, v in found.latents.items()}
    expected = ModelPotential(model, (t([0.7, 0.6, 0.3]), seen), {})
    for ours, theirs in zip(found(points), expected(points), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert bool(torch.isfinite(found(points)[0]).all())


def test_nan_that_counts_is_named():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"non-finite log-probability at 'y' \(nan\)"):
        pyro_dgm.sample_posterior(model, torch.tensor([float("nan"), 1.0]), method="hmc", num_samples=5, progress=False)
