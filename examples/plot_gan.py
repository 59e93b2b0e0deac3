"""
A generative adversarial network in phases
==========================================

Adversarial training alternates between two losses.  A :class:`~pyro_dgm.infer.Phase` is one of them, with the
parameters that it trains.  The program is an ordinary Pyro model that returns its draws.
"""

import functools

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import make_moons
from torch import nn
from torch.nn.functional import softplus

import pyro_dgm
from pyro_dgm.infer import EMA, Phase, Phased

# %%
# Generator and discriminator
# ---------------------------
#
# The data are two half circles.  The model maps normal noise to points in the plane.  It has no observed site, so there
# is no likelihood, and the guide is empty.

points, _ = make_moons(2000, noise=0.05, random_state=0)
x = torch.as_tensor(points, dtype=torch.float32)


def network(inputs, outputs, hidden=64):
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, outputs),
    )


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network(2, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            return self.net(pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)))

    def guide(self, x):
        pass


# %%
# Two phases
# ----------
#
# A loss is a function of model and guide that returns a function of the batch.  In each step, the first phase updates
# the discriminator and the second the generator (``steps=`` would make several updates).  The last weights of a GAN are
# noisy, so :class:`~pyro_dgm.infer.EMA` averages them.

torch.manual_seed(0)
generator, discriminator = Generator(), network(2, 1)


def discriminate(model, guide):
    def loss(x):
        fake = model(x).detach()
        return (softplus(-discriminator(x)) + softplus(discriminator(fake))).sum()

    return loss


def generate(model, guide):
    return lambda x: softplus(-discriminator(model(x))).sum()


gan = Phased(
    Phase("objective", discriminate),
    Phase("program", generate),
    learned=discriminator,
)
run = pyro_dgm.fit(
    generator,
    x,
    objective=gan,
    optimizer=functools.partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.9)),
    epochs=250,
    batch_size=200,
    averaging=EMA(0.99),
    seed=0,
    progress=False,
)

# %%
# Losses and samples
# ------------------
#
# The losses do not measure the quality of the samples.  Near :math:`\log 4 \approx 1.386` for the discriminator and
# :math:`\log 2 \approx 0.693` for the generator, the discriminator cannot distinguish samples from data.

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
left.plot(run.history["objective"], label="discriminator")
left.plot(run.history["train"], label="generator")
left.set_xlabel("epoch")
left.set_ylabel("loss (nats per datum)")
left.legend(fontsize="small")
with torch.no_grad():
    samples = generator.model(x)
for axes, values, title in ((middle, x, "data"), (right, samples, "samples")):
    axes.plot(*values.T, ".", markersize=2, alpha=0.5)
    axes.set(
        xlim=(-1.6, 2.6), ylim=(-1.2, 1.7), title=title, xlabel="$x_1$", aspect="equal"
    )
middle.set_ylabel("$x_2$")
plt.show()

# %%
# The samples follow both half circles, but the curves are thinner than the data, and some points lie between them: the
# generator is a continuous map of a connected distribution.  Its samples have no density, so compare them with the data
# by eye, or by a distance such as :func:`pyro_dgm.ops.mmd`.
