"""
A flow of images
================

Glow and RealNVP are flows whose layers are convolutions.  Blocks of pixels become channels, and half of the channels
leave the flow at each level, so that the noise has a coarse and a fine part.  We fit a small Glow to handwritten
digits, compare it with a flow that sees pixels as a vector, and look at what each level's noise does.
"""

import functools
import math

import matplotlib.pyplot as plt
import torch

import pyro_dgm
from pyro_dgm.infer import ELBO

# %%
# Digits
# ------
#
# The images are 8 x 8 pixels of 17 levels: integers, so the flow is one of dequantised data.

data = pyro_dgm.datasets.digits()
train, test = (16 * data.train).round(), (16 * data.test).round()

# %%
# Glow, and a flow of vectors
# ---------------------------
#
# ``transform="image_flow"`` makes a flow by :func:`~pyro_dgm.distributions.transforms.make_image_flow`.
# ``initialize`` sets scales and shifts from data, each from what the layers nearer to the data make of them.

epochs, batch_size = 12, 100
steps = epochs * math.ceil(len(train) / batch_size)
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
levels = {"dequantize": "uniform", "num_levels": 17}
glow_options = {"num_levels": 2, "hidden_channels": 32, "num_blocks": 1}
torch.manual_seed(0)
flows = {
    "glow": pyro_dgm.models.FlowModel(
        (8, 8), "image_flow", num_layers=4, options=glow_options, **levels
    ),
    "spline, vectors": pyro_dgm.models.FlowModel(
        (8, 8), "spline_coupling", num_layers=8, hidden=(128, 128), **levels
    ),
}
for name, flow in flows.items():
    flow.initialize(train)
    with torch.no_grad():
        before = flow.bits_per_dim(test, seed=0).mean()
    fit(flow, train)
    with torch.no_grad():
        after = flow.bits_per_dim(test, seed=0).mean()
    print(
        f"{name}: {before:.2f} bits per dimension at first, {after:.2f} after {steps} steps"
    )

# %%
# Draws
# -----

glow = flows["glow"]


def show(axis, images, rows, title):
    framed = torch.nn.functional.pad(images.reshape(rows, -1, 8, 8), (1, 1, 1, 1))
    grid = framed.permute(0, 2, 1, 3).reshape(10 * rows, -1)
    axis.imshow(grid, cmap="gray_r", vmin=0, vmax=16)
    axis.set_title(title, fontsize="medium")
    axis.axis("off")


figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
show(axes[0], test[:64], 8, "data")
for axis, (name, flow) in zip(axes[1:], flows.items()):
    show(axis, flow.sample(64, seed=0), 8, f"draws: {name}")
plt.show()

# %%
# Coarse and fine noise
# ---------------------
#
# The noise of an image is one vector: first that of the coarse level, of 8 x 2 x 2 elements, then that of the fine one,
# of 2 x 4 x 4.  Each row keeps the coarse noise and draws the fine noise anew.

generator = torch.Generator().manual_seed(1)
coarse = torch.randn(6, 1, 32, generator=generator).expand(6, 12, 32)
fine = torch.randn(6, 12, 32, generator=generator)
with torch.no_grad():
    images = glow.flow(torch.cat([coarse, fine], -1).flatten(0, 1))
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
show(axis, images.floor(), 6, "one coarse noise in each row")
plt.show()
