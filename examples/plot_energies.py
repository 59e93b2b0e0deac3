"""
Seven objectives for one energy
===============================

A network gives the density of an energy-based model up to an unknown constant :math:`Z`.  Objectives avoid
:math:`Z` in different ways: by Markov chains, by the gradient of the log-density, which does not depend on :math:`Z`,
or by a classifier of data and noise.  In two dimensions, a grid gives :math:`Z`, and we can see what each objective
learns.
"""

import functools
import math

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch

import pyro_dgm
from pyro_dgm.infer import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastive,
    PersistentCD,
    ScoreMatching,
    SlicedScoreMatching,
)

# %%
# A density with modes of unequal weight
# --------------------------------------
#
# Eight normals on a circle.  The last four have three times the weight of the others: an objective has to find the
# modes *and* their weights.

torch.manual_seed(0)
angles = torch.arange(8) * math.pi / 4
target = dist.MixtureSameFamily(
    dist.Categorical(torch.tensor([1.0, 1, 1, 1, 3, 3, 3, 3])),
    dist.Normal(2 * torch.stack([angles.cos(), angles.sin()], -1), 0.25).to_event(1),
)
x = target.sample((4000,))

# %%
# One program, seven objectives
# -----------------------------
#
# A small network multiplies a broad normal base by :math:`e^{-E}`.  :func:`~pyro_dgm.analysis.compare_energies`
# trains it under each objective, from the same initial weights on the same batches.


def make():
    ebm = pyro_dgm.models.EBM((2,), hidden=(64, 64), step_size=0.1)
    ebm.initialize_base(x, widen=1.5)
    return ebm


objectives = {
    "CD-1": ContrastiveDivergence(num_steps=1),
    "CD-10": ContrastiveDivergence(num_steps=10),
    "PCD": PersistentCD(num_steps=10, num_chains=256, buffer=4000, reinit=0.05),
    "SM": ScoreMatching(),
    "DSM": DenoisingScoreMatching(noise_levels=0.1),
    "SSM": SlicedScoreMatching(),
    "NCE": NoiseContrastive(num_noise=4),
}
epochs, batch_size = 70, 250
table = pyro_dgm.analysis.compare_energies(
    make,
    x,
    objectives,
    log_density=target.log_prob,
    epochs=epochs,
    batch_size=batch_size,
    optimizer=functools.partial(torch.optim.Adam, lr=0.01),
    lr_scheduler=functools.partial(
        torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs * len(x) // batch_size
    ),
    lr_scheduler_interval="step",
    seed=0,
)
table.to_frame()[["kl", "tv", "kl_blurred", "log_z", "log_z_learned"]].round(3)

# %%
# ``kl`` is the divergence of the learned density from the target, in nats; ``tv`` is the total variation distance,
# between 0 and 1.  Both are sums over a grid.

table.plot(plt.figure())
plt.show()

# %%
# - CD-1 only uses one step from each datum, and merges neighbouring modes.  Ten steps are better.
# - The chains of PCD rarely move between modes.  Chains that restart from noise reach a light mode as often as a heavy
#   one.  This is more often than the data do, so the energy of the light modes rises until they are nearly empty.  Use
#   longer chains or ``initial="data"``; more restarts from noise make it worse.
# - Score matching, exact or sliced, finds the position and shape of each mode.  It learns little about the weights of
#   separate modes, because the score at one mode does not depend on the others.
# - Denoising score matching learns the density of the data with added noise.  ``kl_blurred`` refers to that density.
# - Noise-contrastive estimation also learns :math:`\log Z`: compare ``log_z_learned`` with the sum over the grid,
#   ``log_z``.  It learns the weights, because its noise, the base, covers the data; in many dimensions no noise does.
#   It is cheap, and improves further with more epochs.
#
# The constants differ between objectives, because all but NCE leave :math:`Z` free.
