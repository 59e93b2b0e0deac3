"""The posterior of digits under a trained VAE: every method by one argument, against importance sampling."""

from __future__ import annotations

import functools

import arviz
import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.mcmc import HMC, KERNELS
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential

pytestmark = pytest.mark.slow

#: with the settings they come with; of the others the step size is the user's, and its bias with it
METHODS = [*(name for name, kernel in KERNELS.items() if kernel.adjusted), "mclmc", "nuts-numpyro"]
#: draws of the proposal, whose weights give the exact moments
PARTICLES = 200_000


@functools.cache
def trained():
    """A VAE as the demo trains it, in float64, and three test digits."""
    with torch.random.fork_rng(devices=[]):
        data = pyro_dgm.datasets.digits(binarize="threshold")
        torch.manual_seed(0)
        vae = pyro_dgm.models.VAE(data.event_shape, 8, "bernoulli", hidden=(128,))
        adam = functools.partial(torch.optim.Adam, lr=2e-3)
        pyro_dgm.fit(vae, data.train, optimizer=adam, epochs=60, batch_size=64, seed=0, progress=False)
    return vae.double().eval(), data.test[[0, 5, 9]].double()


@functools.cache
def exact():
    """Means and standard deviations, with their errors, by self-normalised weights of draws that no kernel made.

    The proposal is a multivariate t with the moments of a pilot run: what that gets wrong costs precision alone.
    """
    vae, x = trained()
    pilot = pyro_dgm.sample_posterior(vae, x, method="hmc", num_samples=300, num_chains=16, seed=7, progress=False)
    columns = []
    for i, datum in enumerate(x):
        z = pilot["z"][:, :, i].flatten(0, 1)
        proposal = dist.MultivariateStudentT(
            torch.tensor(6.0, dtype=z.dtype), z.mean(0), torch.linalg.cholesky(1.2 * z.T.cov())
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            z = proposal.sample((PARTICLES,))
        potential = ModelPotential(vae.model, (datum[None],), {})
        log_p = -torch.cat([potential.value({"z": part[:, None]}) for part in z.split(20_000)])
        w = torch.softmax(log_p.detach() - proposal.log_prob(z), 0)
        assert 1 / w.square().sum() > 0.1 * PARTICLES
        mean = w @ z
        sd = (w @ (z - mean).square()).sqrt()
        mean_error = (w.square() @ (z - mean).square()).sqrt()
        # of the variance, and by the delta method of its root
        sd_error = (w.square() @ ((z - mean).square() - sd.square()).square()).sqrt() / (2 * sd)
        columns.append(torch.stack([mean, sd, mean_error, sd_error]))
    return tuple(torch.stack(columns, 1).numpy())


def moments(draws):
    """Mean, standard deviation and their Monte Carlo errors, of draws ``(chains, draws, ...)``."""
    flat = np.asarray(draws).reshape(*draws.shape[:2], -1)
    columns = [flat[..., j] for j in range(flat.shape[-1])]
    errors = [np.array([float(arviz.mcse(c, method=m)) for c in columns]) for m in ("mean", "sd")]
    shape = draws.shape[2:]
    found = (flat.mean((0, 1)), flat.std((0, 1)), *errors)
    return tuple(v.reshape(shape) for v in found)


@pytest.mark.parametrize("method", METHODS)
def test_moments_are_those_of_importance_sampling(method):
    vae, x = trained()
    draws = 8000 if method == "random-walk" else 1000
    post = pyro_dgm.sample_posterior(
        vae, x, method=method, num_samples=draws, num_chains=16, warmup_steps=500, seed=1, progress=False
    )
    mean, sd, mean_error, sd_error = moments(post["z"])
    want_mean, want_sd, want_mean_error, want_sd_error = exact()
    assert (np.abs(mean - want_mean) / np.hypot(mean_error, want_mean_error)).max() < 4
    assert (np.abs(sd - want_sd) / np.hypot(sd_error, want_sd_error)).max() < 4
    assert (mean_error < 0.1 * want_sd).all()


def test_another_temperature_is_told_apart():
    """The same comparison, of draws that are wrong by a twentieth."""
    vae, x = trained()
    post = pyro_dgm.sample_posterior(
        vae, x, method=HMC(temperature=1.1), num_samples=1000, num_chains=16, warmup_steps=500, seed=1, progress=False
    )
    _, sd, _, sd_error = moments(post["z"])
    _, want_sd, _, want_sd_error = exact()
    assert (np.abs(sd - want_sd) / np.hypot(sd_error, want_sd_error)).max() > 4


def test_the_guide_is_near_and_is_not_the_posterior():
    """A normal, amortised guide: the same test tells it from the posterior, which the kernels pass."""
    vae, x = trained()
    post = pyro_dgm.sample_posterior(vae, x, num_samples=1000, num_chains=16, seed=1)
    mean, sd, mean_error, sd_error = moments(post["z"])
    want_mean, want_sd, want_mean_error, want_sd_error = exact()
    assert (np.abs(mean - want_mean) < want_sd).all()
    assert (np.abs(np.log(sd / want_sd)) < 0.7).all()
    far = np.maximum(
        np.abs(mean - want_mean) / np.hypot(mean_error, want_mean_error),
        np.abs(sd - want_sd) / np.hypot(sd_error, want_sd_error),
    )
    assert far.max() > 4
