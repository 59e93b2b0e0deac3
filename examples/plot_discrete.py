"""
Discrete latents: the noise of gradient estimators
==================================================

A sigmoid belief network has binary latents, so there is no pathwise gradient.  All estimators below except one are
unbiased for the gradient of one of two bounds.  They differ in noise, and so in the learning rate that they allow.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyro_dgm
from pyro_dgm.infer import (
    IWAE,
    NVIL,
    REBAR,
    RELAX,
    VIMCO,
    ReweightedWakeSleep,
    ScoreFunction,
    VarGrad,
)

# %%
# A belief network of handwritten digits
# --------------------------------------
#
# Eight binary latents explain 64 binary pixels.


class BeliefNetwork(torch.nn.Module):
    def __init__(self, num_causes=8, num_pixels=64):
        super().__init__()
        self.prior = torch.nn.Parameter(torch.zeros(num_causes))
        self.decoder = torch.nn.Linear(num_causes, num_pixels)
        self.encoder = torch.nn.Linear(num_pixels, num_causes)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pixels = dist.Bernoulli(logits=self.decoder(z)).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


images = pyro_dgm.datasets.digits(binarize="threshold").train.flatten(1)
torch.manual_seed(0)
network = BeliefNetwork()
pyro_dgm.fit(
    network, images, objective=VIMCO(5), epochs=5, batch_size=50, seed=0, progress=False
)

# %%
# Noise of one step
# -----------------
#
# The network stays fixed, and each estimator's gradient is computed many times.  :class:`~pyro_dgm.infer.NVIL`,
# :class:`~pyro_dgm.infer.RELAX` and :class:`~pyro_dgm.infer.REBAR` learn a baseline or a control variate, which is
# trained first.

batch = images[:50]


def trained(objective, steps=400):
    objective.structure(network.model, network.guide, (batch,), {})
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.differentiable_loss(network.model, network.guide, batch).backward()
        optimizer.step()
    network.zero_grad()
    return objective


K = 5
elbo = {
    "score function, no baseline": ScoreFunction(K, baseline=None),
    "NVIL": trained(NVIL(K)),
    "score function, leave-one-out": ScoreFunction(K),
    "VarGrad": VarGrad(K),
    "RELAX": trained(RELAX(K)),
    "REBAR": trained(REBAR(K)),
}
iwae = {
    "IWAE (score function)": IWAE(K),
    "NVIL": trained(NVIL(K, target="iwae")),
    "VIMCO": VIMCO(K),
    "reweighted wake-sleep*": ReweightedWakeSleep(K),
}
tables = [
    pyro_dgm.compare_elbos(network, batch, estimators, num_replicates=50, seed=0)
    for estimators in (elbo, iwae)
]
print(tables[1])

# %%
# The order agrees with the papers.  On the importance weighted bound, VIMCO [1]_ has less noise than NVIL [2]_, and
# NVIL less than the plain score function.  On the ELBO, a trained control variate [3]_ [4]_ has less noise than every
# baseline.  VarGrad and the leave-one-out baseline are the same estimator, derived in two ways.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharex=True)
for axis, table, title in zip(axes, tables, ("ELBO", f"IWAE, K = {K}")):
    names = [row["estimator"] for row in table.rows]
    axis.plot([row["variance_guide"] for row in table.rows], names, "o")
    axis.set_xscale("log")
    axis.margins(y=0.1)
    axis.invert_yaxis()
    axis.grid(axis="x", color="0.9")
    axis.set_title(title, fontsize="medium")
figure.supxlabel("variance of the guide's gradient (nats² per datum²)", fontsize="medium")
plt.show()

# %%
# \* The exception: its guide gradient is that of the divergence :math:`KL(p \| q)`, not of the bound, so its size
# cannot be compared with the others.
#
# .. [1] A. Mnih and D. J. Rezende (2016), *Variational inference for Monte Carlo objectives*, arXiv:1602.06725.
# .. [2] A. Mnih and K. Gregor (2014), *Neural variational inference and learning in belief networks*,
#    arXiv:1402.0030.
# .. [3] W. Grathwohl et al. (2018), *Backpropagation through the void*, arXiv:1711.00123.
# .. [4] G. Tucker et al. (2017), *REBAR*, arXiv:1703.07370.
