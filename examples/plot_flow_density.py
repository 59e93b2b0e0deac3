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

# %%
# Five more data sets
# -------------------
#
# The usual tests in two dimensions. Above the data; in the middle the density of a spline autoregressive flow; below
# that of an affine one of as many layers and steps. An affine layer moves and stretches: a flow of them cannot cut a
# piece off, and leaves bridges.


def pinwheel(n):
    arm = torch.randint(5, (n,))
    radius, side = 1.0 + 0.3 * torch.randn(n), 0.1 * torch.randn(n)
    angle = 2 * math.pi * arm / 5 + 0.25 * radius.exp()
    return torch.stack(
        [
            radius * angle.cos() - side * angle.sin(),
            radius * angle.sin() + side * angle.cos(),
        ],
        -1,
    )


def checkerboard(n):
    row = torch.randint(4, (n,))
    column = 2 * torch.randint(2, (n,)) + row % 2
    return torch.stack([column, row], -1) + torch.rand(n, 2) - 2.0


def rings(n):
    radius, angle = (
        1.0 + torch.randint(2, (n,)) + 0.1 * torch.randn(n),
        2 * math.pi * torch.rand(n),
    )
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def eight_gaussians(n):
    angle = 2 * math.pi * torch.randint(8, (n,)) / 8
    return 1.7 * torch.stack([angle.cos(), angle.sin()], -1) + 0.15 * torch.randn(n, 2)


toys = {
    "two moons": lambda n: 1.3 * (two_moons(n)[0] - torch.tensor([0.5, 0.25])),
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
    "rings": rings,
    "eight Gaussians": eight_gaussians,
}
cosine = functools.partial(
    torch.optim.lr_scheduler.CosineAnnealingLR, T_max=8 * 20_000 // 500
)
side = torch.linspace(-2.6, 2.6, 150)
grid = torch.cartesian_prod(side, side)
figure, axes = plt.subplots(
    3, 5, figsize=(9, 5.6), layout="constrained", sharex=True, sharey=True
)
for column, (name, draw) in enumerate(toys.items()):
    torch.manual_seed(0)
    x = draw(20_000)
    axes[0, column].hist2d(*x.T.numpy(), bins=100, range=[[-2.6, 2.6]] * 2, cmap="magma")
    axes[0, column].set_title(name, fontsize="medium")
    for row, kind in enumerate(["spline_autoregressive", "affine_autoregressive"], 1):
        toy = pyro_dgm.models.FlowModel((2,), kind, num_layers=3, hidden=(64, 64))
        toy.initialize(x)
        fit(toy, x, epochs=8, batch_size=500, lr_scheduler=cosine)
        with torch.no_grad():
            density = toy.log_prob(grid).exp().reshape(150, 150)
        axes[row, column].pcolormesh(side, side, density.T, cmap="magma", rasterized=True)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[], aspect="equal")
for row, label in enumerate(["data", "spline", "affine"]):
    axes[row, 0].set_ylabel(label)
plt.show()
