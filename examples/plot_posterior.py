"""
Guide, HMC and the exact posterior
==================================

The posterior of a linear-Gaussian model is known exactly, so we can compare draws with it.  Even the best mean-field
guide misses the correlation of the latents and is too narrow.  HMC is correct within its Monte Carlo error, and its
diagnostics show how large this error is.
"""

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes

import pyro_dgm

# %%
# The program
# -----------
#
# Factor analysis with two factors for ten measurements of 442 patients: age, sex, body mass index,
# blood pressure and six blood serum values.  The guide is set to the optimum for a diagonal
# covariance: the exact mean, and variances that are the reciprocals of the diagonal of the precision.

torch.manual_seed(0)
x = torch.as_tensor(load_diabetes().data)
x = (x - x.mean(0)) / x.std(0)
program = pyro_dgm.models.LinearGaussian(event_dim=10, latent_dim=2).double()
program.fit_em(x, max_iterations=20)
with torch.no_grad():
    # The likelihood does not change if the factors are rotated.  A rotation by 45 degrees from the axes in which the
    # posterior is uncorrelated gives the strongest correlation.
    scaled = program.weight / program.noise_scale[:, None] ** 2
    axes = torch.linalg.eigh(program.weight.mT @ scaled).eigenvectors
    program.weight.copy_(
        program.weight
        @ axes
        @ torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
        / 2**0.5
    )
program.set_guide_to_posterior()
x = x[:20]

# %%
# Three sampling methods
# ----------------------

exact = program.posterior(x)
draws = {
    method: pyro_dgm.sample_posterior(
        program, x, method=method, num_samples=200, num_chains=32, seed=0, progress=False
    )
    for method in ("guide", "hmc", "mala")
}
for posterior in draws.values():
    print(posterior)

# %%
# The latents of one patient.  Dots are draws; the ellipse contains 90 % of the exact posterior.

covariance = exact.covariance_matrix[0].detach().numpy()
circle = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 200)), np.sin(t)])
ellipse = (
    exact.loc[0].detach().numpy()[:, None]
    + (-2 * np.log(0.1)) ** 0.5 * np.linalg.cholesky(covariance) @ circle
)
figure, axes = plt.subplots(
    1, 3, figsize=(9, 4), sharex=True, sharey=True, layout="constrained"
)
for panel, (method, posterior) in zip(axes, draws.items()):
    z = posterior.flat()["z"][:: 32 * 200 // 800, 0]
    panel.plot(z[:, 0], z[:, 1], ".", markersize=3, alpha=0.5)
    panel.plot(*ellipse, color="black", label="exact, 90 %")
    panel.set_title(method)
    panel.set_xlabel("$z_1$ (prior standard deviations)")
    panel.set_aspect("equal")
axes[0].set_ylabel("$z_2$ (prior standard deviations)")
axes[0].legend(loc="upper right", fontsize="small")
plt.show()

# %%
# Errors in standard errors
# -------------------------
#
# The mean of the draws should be within a few standard errors of the exact mean.  The standard error
# is the standard deviation divided by the root of the *effective* sample size, which for a chain
# is not the number of draws.  Over all 40 latents:

exact_mean, exact_sd = exact.loc.detach().numpy(), exact.variance.sqrt().detach().numpy()
print(
    f"{'method':8}{'mean error / its standard error':>34}{'sd / exact sd':>16}{'worst R-hat':>14}{'least ESS':>12}"
)
for method, posterior in draws.items():
    latents = pyro_dgm.to_arviz(posterior, log_likelihood=False, log_prior=False)
    ess, r_hat = az.ess(latents)["z"].values, az.rhat(latents)["z"].values
    z = posterior.flat()["z"].detach().numpy()
    error = (z.mean(0) - exact_mean) / (z.std(0) / np.sqrt(ess))
    worst = f"rms {(error**2).mean() ** 0.5:.2f}, largest {abs(error).max():.1f}"
    print(
        f"{method:8}{worst:>34}{(z.std(0) / exact_sd).mean():>16.3f}"
        f"{r_hat.max():>14.4f}{ess.min():>12.0f}"
    )

# %%
# HMC is exact within its error.  MALA makes one gradient step per transition and moves so little that
# its R-hat is above 1.01 and its effective sample size is a small fraction of the number of draws:
# it has to run longer.
#
# R-hat of the guide's draws is also perfect: it measures whether chains agree, and draws from one
# wrong distribution do.  The log weight of the draws, :math:`\log p(x, z) - \log q(z \mid x)`, shows
# the error of the guide: it is constant if the guide is the posterior.  An importance weighted
# bound corrects for its variation.

stats = draws["guide"].sample_stats
log_weight = (stats["log_p"] - stats["log_q"]).flatten() / len(x)
log_p = program.log_prob(x).mean().item()
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.hist(
    log_weight.numpy(),
    bins=60,
    density=True,
    histtype="stepfilled",
    alpha=0.6,
    label="draws of the guide",
)
axes.axvline(float(log_weight.mean()), color="C0", label="their mean (ELBO)")
axes.axvline(log_p, color="black", label="exact $\\log p(x)$")
axes.set_xlabel("log p(x, z) - log q(z | x)  (nats per datum)")
axes.set_ylabel("density (per nat)")
axes.legend(fontsize="small")
plt.show()
