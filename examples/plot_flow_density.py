"""
The density of a flow
=====================

A normalizing flow turns normal noise into data by an invertible map.  The density of the data then has a closed form.
We fit a flow to two moons, draw from it, and look at the density and at what each layer does.
"""

import functools
import math

import matplotlib.pyplot as plt
import torch

import pyro_dgm
from pyro_dgm.infer import ELBO

# %%
# Two moons
# ---------
#
# Points on two half circles, with noise.

torch.manual_seed(0)


def two_moons(n):
    angle, moon = math.pi * torch.rand(n), torch.randint(2, (n,))
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
    points = torch.where(moon[:, None] == 0, upper, lower) + 0.08 * torch.randn(n, 2)
    return points, moon


(train, train_moon), (test, test_moon) = two_moons(4000), two_moons(2000)

# %%
# A neural spline flow
# --------------------
#
# Four spline couplings.  There is no latent, so the ELBO is the exact log-likelihood.

flow = pyro_dgm.models.FlowModel(
    (2,), "spline_coupling", num_layers=4, hidden=(64, 64), options={"num_bins": 8}
)
flow.initialize(train)
epochs, batch_size = 40, 250
steps = epochs * len(train) // batch_size
fit = functools.partial(
    pyro_dgm.fit,
    objective=ELBO(),
    epochs=epochs,
    batch_size=batch_size,
    optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
    lr_scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
    lr_scheduler_interval="step",
    seed=0,
    progress=False,
)
run = fit(flow, train, validation=test)
pyro_dgm.analysis.log_likelihood(flow, test, method="exact")

# %%
# Data, draws, density
# --------------------

side = torch.linspace(-1.6, 2.6, 200), torch.linspace(-1.2, 1.7, 200)
grid = torch.cartesian_prod(*side)
with torch.no_grad():
    density = flow.log_prob(grid).exp().reshape(200, 200)
draws = flow.sample(2000, seed=0)

figure, axes = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained", sharey=True)
axes[0].scatter(*test.T, s=1)
axes[0].set_title("data", fontsize="medium")
axes[1].scatter(*draws.T, s=1)
axes[1].set_title("draws", fontsize="medium")
axes[2].pcolormesh(*side, density.T, cmap="magma", rasterized=True)
axes[2].set_title("density", fontsize="medium")
for axis in axes:
    axis.set_aspect("equal")
    axis.set(xlim=(-1.6, 2.6), ylim=(-1.2, 1.7))
plt.show()

# %%
# The density has a value at every point, and integrates to one:

area = (side[0][1] - side[0][0]) * (side[1][1] - side[1][0])
print(f"integral over the picture: {float(density.sum() * area):.3f}")

# %%
# From noise to data
# ------------------
#
# The parts of the flow, one after another, on the same noise.  Colours show the angle of the noise.

noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
colour = torch.atan2(noise[:, 1], noise[:, 0])
stages = [noise]
with torch.no_grad():
    for part in flow.flow.parts:
        stages.append(part(stages[-1]))
shown = [0, 1, 3, 5, 7, len(stages) - 1]  # behind each coupling, and the end
figure, axes = plt.subplots(1, len(shown), figsize=(9, 1.8), layout="constrained")
for axis, index in zip(axes, shown):
    axis.scatter(*stages[index].T, s=1, c=colour, cmap="twilight")
    axis.set_title(
        "noise" if index == 0 else "data" if index == shown[-1] else f"part {index}",
        fontsize="medium",
    )
    axis.set_xticks([])
    axis.set_yticks([])
plt.show()

# %%
# Given a class
# -------------
#
# With ``num_classes`` the batch is ``(x, classes)``, and the density is that of a datum given its class.  Each moon is
# one piece, so no thin bridge of density joins two.

torch.manual_seed(0)
conditional = pyro_dgm.models.FlowModel(
    (2,), "spline_coupling", num_layers=4, hidden=(64, 64), num_classes=2
)
conditional.initialize(train)
fit(conditional, (train, train_moon))
with torch.no_grad():
    print(
        f"log p(x | moon): {conditional.log_prob(test, test_moon).mean():.3f} nats, "
        f"log p(x) + log 2: {flow.log_prob(test).mean() + math.log(2):.3f}"
    )

figure, axis = plt.subplots(figsize=(4, 2.6), layout="constrained")
for k in range(2):
    given = conditional.sample(1000, torch.full((1000,), k), seed=k)
    axis.scatter(*given.T, s=1, label=f"moon {k}")
axis.set(xlim=(-1.6, 2.6), ylim=(-1.2, 1.7), aspect="equal")
axis.legend(markerscale=5)
plt.show()
