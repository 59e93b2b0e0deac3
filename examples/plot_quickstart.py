"""
Quickstart: fit, compare, sample, analyse
=========================================

A variational autoencoder of handwritten digits, from data to an ArviZ posterior.  The program is written once; the
estimator that trains it and the sampler that draws from its posterior are arguments.
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
# The digits come with scikit-learn: 8 x 8 pixels, here set to 0 or 1, as a Bernoulli likelihood
# needs.

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
# :func:`~pyro_dgm.fit` trains the program in place and gives back the record of its training.
# Bounds are in nats per datum, here of the importance weighted bound with K = 8 particles, whose
# gradients :class:`~pyro_dgm.infer.DReG` estimates with little noise.

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
# How probable are digits that it has not seen?  With many particles the bound comes close to the
# log-likelihood; the number of particles always belongs to the figure.

print(
    pyro_dgm.analysis.log_likelihood(
        vae, data.test, method="iwae", num_particles=500, seed=0
    )
)

# %%
# Compare estimators
# ------------------
#
# Which objective would have been best to train with?  One call evaluates several on the same
# program and batch: how tight each bound is, how much signal its gradients carry, and what a step
# costs.  :func:`~pyro_dgm.compare_elbos` says what each column means.

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
# What are the latents of four digits of the test set?  The guide answers at once; Hamiltonian Monte
# Carlo takes longer and is the judge: both draw from the same program.

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
# Decoded, the two agree on what the digits look like.  The lower row shows where HMC's draws
# disagree with each other: the outline is what the latents leave open.

figure, axes = plt.subplots(4, 4, figsize=(5.4, 5.6), layout="constrained")
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
        axes[i, j].imshow(images[j], cmap="gray_r", vmin=0, vmax=1 if i < 3 else 0.5)
        axes[i, j].set(xticks=[], yticks=[])
    axes[i, 0].set_ylabel(title)
plt.show()

# %%
# Analyse with ArviZ
# ------------------
#
# Any result becomes an ArviZ posterior.  The plate ``data`` of the program is a dimension, and the
# log-likelihood of each digit is there for :func:`arviz.loo`.

idata = pyro_dgm.to_arviz(by_hmc)
az.summary(idata, var_names=["z"], coords={"data": [0]})

# %%
# R-hat near 1 and an effective sample size of hundreds say that the chains agree: here HMC can be
# trusted, and the guide be held against it.
