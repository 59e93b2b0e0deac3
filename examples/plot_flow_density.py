r"""
Densities with normalizing flows
================================

A normalizing flow is an exact density: :math:`\log p(x)` needs no bound. We fit one to points in the plane, look at
its density, and condition another one on classes.
"""

import functools

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons

import pyro_dgm

# %%
# Data: two moons. ``standardize`` gives the last layer of the flow the location and scale of the data; the splines of
# the others bend an interval around zero.

points, classes = make_moons(2000, noise=0.08, random_state=0)
x, classes = torch.as_tensor(points, dtype=torch.float32), torch.as_tensor(classes)
torch.manual_seed(0)
flow = pyro_dgm.models.FlowModel(
    (2,), "spline_coupling", num_layers=4, hidden=(32, 32)
).standardize(x)
adam = functools.partial(torch.optim.Adam, lr=2e-3)

# %%
# The flow has no latent, so its ELBO is :math:`\log p(x)`, and training is maximum likelihood.

run = pyro_dgm.fit(
    flow, x, epochs=60, batch_size=200, seed=0, optimizer=adam, progress=False
)
first, last = run.history["train"][0], run.history["train"][-1]
print(f"log p(x): {first:.2f} nats per datum in the first epoch, {last:.2f} in the last")
# OLD['train'][0]:.2f} nats per datum in the first epoch, {run.history['train'][-1]:.2f} in the last")

# %%
# The density is exact, so its mass on a grid that holds the data is close to one.

side = torch.linspace(-2.5, 3.5, 241)
grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
with torch.no_grad():
    density = flow.log_prob(grid.reshape(-1, 2)).exp().reshape(241, 241)
print(f"mass on the grid: {density.sum() * (6 / 240) ** 2:.3f}")

figure, axes = plt.subplots(
    1, 3, figsize=(10, 3.4), sharex=True, sharey=True, layout="constrained"
)
axes[0].scatter(*x.T, s=2)
axes[0].set_title("data")
axes[1].scatter(*flow.sample(2000, seed=0).T, s=2)
axes[1].set_title("samples")
shown = axes[2].pcolormesh(side, side, density, shading="auto", cmap="magma")
axes[2].set_title("density")
figure.colorbar(shown, ax=axes[2], label="density p(x)")
for axis in axes:
    axis.set(xlabel="$x_1$", xlim=(-2, 3), ylim=(-1.5, 2))
axes[0].set_ylabel("$x_2$")

# %%
# With ``num_classes`` the batch is ``(x, classes)``, and the density is that of a datum given its class.

torch.manual_seed(0)
conditional = pyro_dgm.models.FlowModel(
    (2,), num_layers=4, hidden=(32, 32), num_classes=2
).standardize(x, classes)
run = pyro_dgm.fit(
    conditional,
    (x, classes),
    epochs=60,
    batch_size=200,
    seed=0,
    optimizer=adam,
    progress=False,
)
print(f"log p(x | class): {run.history['train'][-1]:.2f} nats per datum")

figure, axis = plt.subplots(figsize=(4.5, 3.4), layout="constrained")
for k in range(2):
    drawn = conditional.sample(500, torch.full((500,), k), seed=k)
    axis.scatter(*drawn.T, s=3, label=f"class {k}")
axis.set(xlabel="$x_1$", ylabel="$x_2$", title="samples given the class")
axis.legend()
plt.show()
