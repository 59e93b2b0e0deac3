"""
Seven objectives for one energy
===============================

The density of an energy-based model is a network, up to a constant :math:`Z` that nobody knows.  Objectives differ
in how they go about it: by Markov chains, by the gradient of the log-density, in which :math:`Z` has no part, or by
telling data from noise.  In two dimensions :math:`Z` is a sum over a grid, and one can see what each of them learns.
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
# Eight normals on a circle, of which the lower four are three times as heavy: an objective has to find the modes *and*
# their weights.

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
# A small network tilts a broad normal base.  :func:`~pyro_dgm.analysis.compare_energies` trains it afresh under each
# objective, from the same weights on the same batches.


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
# ``kl`` is the divergence of the learnt density from the target, in nats, ``tv`` the total variation distance, between
# 0 and 1; both are sums over a grid.

table.plot(plt.figure())
plt.show()

# %%
# What to see here:
#
# - CD-1 looks at what one step does to a datum, and blurs the modes together.  Ten steps are better.
# - The chains of PCD hardly go from mode to mode.  Those begun anew, at noise, fall into a light mode as
#   often as into a heavy one; that is more than there are data, and the light modes are pushed up until they are nearly
#   empty.  Longer chains are the cure, or ``initial="data"``; more of the same restarts make it worse.
# - Score matching, exact or sliced, has the place and shape of each mode.  Of the weights of modes that are apart it
#   learns little, for the score at one mode says nothing of the others.
# - Denoising score matching learns the density of data with noise added.  ``kl_blurred`` is measured against that.
# - Noise-contrastive estimation learns :math:`\log Z` besides: ``log_z_learned`` stands beside the one that was
#   summed up.  It sees the weights, because its noise, the base, is everywhere near the data; in many dimensions no
#   noise is.  It is cheap, and goes on getting better with more epochs.
#
# The constant differs from objective to objective, because all but NCE leave it free.
