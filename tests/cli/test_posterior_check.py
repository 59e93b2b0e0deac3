"""Posterior moments with their Monte Carlo errors, on draws whose answer is known."""

from __future__ import annotations

import numpy as np

from pyro_dgm.analysis import arviz_adapter
from pyro_dgm.cli.posterior_check import moments


def test_moments_of_draws_with_a_known_autocorrelation() -> None:
    """Draws of an AR(1) chain with sd 2 and correlation r: their mean has variance 4 (1 + r) / (1 - r) / n; their
    squares have correlation r^2, so that the sd has standard error 2 sqrt((1 + r^2) / (1 - r^2) / (2 n)).
    """
    r, chains, draws = np.array([0.0, 0.7]), 4, 5000
    noise = np.random.default_rng(3).normal(size=(chains, draws, 1, 2))
    z = np.empty_like(noise)
    z[:, 0] = noise[:, 0]
    for t in range(1, draws):
        z[:, t] = r * z[:, t - 1] + np.sqrt(1 - r**2) * noise[:, t]
    idata = arviz_adapter.build({"posterior": {"z": 1.0 + 2.0 * z}}, {"posterior": {"z": ["data", "latent"]}})
    found = moments(idata)

    n = chains * draws
    mean_error = 2 * np.sqrt((1 + r) / (1 - r) / n)
    sd_error = 2 * np.sqrt((1 + r**2) / (1 - r**2) / (2 * n))
    # Effective sample sizes from 20 000 draws are right to a few per cent, their roots to half of that.
    np.testing.assert_allclose(found["mean_error"][0], mean_error, rtol=0.15)
    np.testing.assert_allclose(found["sd_error"][0], sd_error, rtol=0.15)
    assert (np.abs(found["mean"][0] - 1.0) < 4 * mean_error).all()
    assert (np.abs(found["sd"][0] - 2.0) < 4 * sd_error).all()
    assert (found["rhat"] < 1.01).all()
