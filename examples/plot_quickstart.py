"""
Quickstart: fit, compare, sample, analyse
=========================================

A variational autoencoder of handwritten digits, from the data to an ArviZ posterior.  You write the program once; the
objective that trains it and the sampler of its posterior are arguments.
"""

# sphinx_gallery_thumbnail_number = 2
import arviz as az
import matplotlib.pyplot as plt
import torch

import pyro_dgm
from pyro_dgm.infer import ELBO, IWAE, STL, DReG

# %%
# Data and program
# ----------------
#
# The digits come with scikit-learn.  They have 8 x 8 pixels, here set to 0 or 1 for the Bernoulli
# likelihood.

data = pyro_dgm.datasets.digits(binarize="threshold", num_validation=200)
print(data)

torch.manual_seed(0)  # the networks' initial weights
vae = pyro_dgm.models.VAE(
    event_shape=(8, 8), latent_dim=8, likelihood="bernoulli", hidden=(128,)
)

# %%
# Fit
# ---
#
# :func:`~pyro_dgm.fit` trains the program in place and returns the history of the training.  Bounds
# are in nats per datum.  This is the importance weighted bound with K = 8 particles;
# :class:`~pyro_dgm.infer.DReG` estimates its gradient with little noise.

run = pyro_dgm.fit(
    vae,
    data.train,
    objective=DReG(num_particles=8),
    epochs=25,
    batch_size=64,
    validation=data.validation,
    seed=0,
    progress=False,
)
print(run)

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
history = run.to_frame()
axes.plot(history.index, history["train"], label="training")
axes.plot(history.index, history["validation"], label="validation")
axes.set_xlabel("epoch")
axes.set_ylabel("bound, K = 8 (nats per datum)")
axes.legend()
plt.show()

# %%
# The log-likelihood of test digits: with many particles the bound is close to it.  Always report the
# number of particles.

print(
    pyro_dgm.analysis.log_likelihood(
        vae, data.test, method="iwae", num_particles=500, seed=0
    )
)

# %%
# Compare estimators
# ------------------
#
# One call evaluates several objectives on the same program and batch: the tightness of each bound,
# the signal-to-noise ratio of its gradients, and the cost of a step.  See
# :func:`~pyro_dgm.compare_elbos` for the meaning of each column.

objectives = [
    ELBO(),
    STL(),
    IWAE(num_particles=8),
    DReG(num_particles=8),
    IWAE(num_particles=64),
    DReG(num_particles=64),
]
table = pyro_dgm.compare_elbos(
    vae,
    data.validation[:64],
    objectives,
    num_replicates=20,
    reference_particles=2000,
    seed=0,
)
table.to_frame()[["bound", "gap", "snr_model", "snr_guide", "ess", "seconds"]].round(3)

# %%
# Draw from the posterior
# -----------------------
#
# The latents of four test digits.  The guide gives draws immediately.  Hamiltonian Monte Carlo takes
# longer, and samples the exact posterior.

x = data.test[:4]
by_guide = pyro_dgm.sample_posterior(
    vae, x, method="guide", num_samples=250, num_chains=4, seed=0
)
by_hmc = pyro_dgm.sample_posterior(
    vae, x, method="hmc", num_samples=200, num_chains=8, seed=0, progress=False
)
print(by_guide)
print(by_hmc)

# %%
# The decoded means of both methods nearly agree.  The last row shows the standard deviation of HMC's
# decoded draws: it is large where the posterior does not determine a pixel.

figure, axes = plt.subplots(4, 4, figsize=(6, 6), layout="constrained")
with torch.no_grad():
    guide_images = vae.decode(by_guide.flat()["z"])
    hmc_images = vae.decode(by_hmc.flat()["z"])
rows = [
    ("digit", x),
    ("guide: mean", guide_images.mean(0)),
    ("HMC: mean", hmc_images.mean(0)),
    ("HMC: sd", hmc_images.std(0)),
]
for i, (title, images) in enumerate(rows):
    for j in range(4):
        picture = axes[i, j].imshow(
            images[j], cmap="gray_r", vmin=0, vmax=1 if i < 3 else 0.5
        )
        axes[i, j].set(xticks=[], yticks=[])
    axes[i, 0].set_ylabel(title)
    figure.colorbar(picture, ax=axes[i].tolist(), shrink=0.8)
figure.suptitle("pixels, and probabilities that a pixel is 1", fontsize="medium")
plt.show()

# %%
# Analyse with ArviZ
# ------------------
#
# :func:`~pyro_dgm.to_arviz` converts any result.  The plate ``data`` of the program becomes a
# dimension, and the log-likelihood of each digit is stored for :func:`arviz.loo`.

idata = pyro_dgm.to_arviz(by_hmc)
az.summary(idata, var_names=["z"], coords={"data": [0]})

# %%
# R-hat near 1 and effective sample sizes of hundreds show that the chains agree.  HMC is reliable
# here, so we can compare the guide with it.
