"""
Your own model: a hierarchical regression
=========================================

Any Pyro function can be a model, and one of Pyro's AutoGuides can be the guide.  This example regresses the progression
of diabetes on the body mass index.  Each age group has its own line, with a common prior (scikit-learn's diabetes data:
442 patients, in the original units).
"""

# sphinx_gallery_thumbnail_number = 2
import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median
from sklearn.datasets import load_diabetes

import pyro_dgm
from pyro_dgm.infer import ELBO
from pyro_dgm.infer.mcmc import HMC

# %%
# Data
# ----

table = load_diabetes(scaled=False)
age, bmi = table.data[:, 0], table.data[:, 2]
decades = np.clip(age // 10, 2, 7).astype(int) - 2
labels = ["under 30", "30s", "40s", "50s", "60s", "70s"]
data = {
    "bmi": torch.as_tensor((bmi - bmi.mean()) / bmi.std()),
    "group": torch.as_tensor(decades),
    "y": torch.as_tensor((table.target - table.target.mean()) / table.target.std()),
}
print({label: int((decades == i).sum()) for i, label in enumerate(labels)})

# %%
# Model
# -----
#
# The plates describe the structure: ``decade`` has one element per age group, ``patient`` one per
# patient.  The model has named arguments, so a batch is a dictionary.


def hierarchical(bmi, group, y):
    intercept = pyro.sample("intercept", dist.Normal(bmi.new_zeros(()), 1.0))
    slope = pyro.sample("slope", dist.Normal(bmi.new_zeros(()), 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(bmi.new_full((2,), 0.5)).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(bmi.new_ones(())))
    with pyro.plate("decade", len(labels)):
        offset = pyro.sample("offset", dist.Normal(bmi.new_zeros(2), 1.0).to_event(1))
        line = pyro.deterministic(
            "line", torch.stack([intercept, slope], -1) + scale * offset, event_dim=1
        )
    with pyro.plate("patient", len(bmi)):
        pyro.sample(
            "y", dist.Normal(line[..., group, 0] + line[..., group, 1] * bmi, noise), obs=y
        )


def pooled(bmi, group, y):
    intercept = pyro.sample("intercept", dist.Normal(bmi.new_zeros(()), 1.0))
    slope = pyro.sample("slope", dist.Normal(bmi.new_zeros(()), 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(bmi.new_ones(())))
    with pyro.plate("patient", len(bmi)):
        pyro.sample("y", dist.Normal(intercept + slope * bmi, noise), obs=y)


# %%
# Fit a guide
# -----------
#
# All latents are global: they belong to the whole data set, and the bound is one number for all
# data (shown per patient).  One batch contains all data, so an epoch is one step.  The learning rate
# decreases to zero, because the gradient stays noisy.

program = pyro_dgm.program(hierarchical, AutoMultivariateNormal(hierarchical))
STEPS = 600
run = pyro_dgm.fit(
    program,
    data,
    objective=ELBO(num_particles=4),
    batch_size=len(bmi),
    epochs=STEPS,
    seed=0,
    progress=False,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.03),
    lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, STEPS
    ),
)

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(run.history["train"], linewidth=0.6)
axes.set_ylim(
    np.quantile(run.history["train"], 0.1) - 0.05, max(run.history["train"]) + 0.02
)
axes.set_xlabel("step")
axes.set_ylabel("bound (nats per patient)")
plt.show()

# %%
# Sample with HMC
# ---------------
#
# The same model runs with another inference method.  To choose settings, pass a kernel instead of
# its name.  Here the chains start at the medians of the prior and take small steps, which
# hierarchical models need.

kernel = HMC(init_strategy=init_to_median, target_accept_prob=0.9)
by_guide = pyro_dgm.sample_posterior(
    program, data, method="guide", num_samples=500, num_chains=8, seed=0
)
by_hmc = pyro_dgm.sample_posterior(
    program, data, method=kernel, num_samples=80, num_chains=32, seed=0, progress=False
)
coords = {"decade": labels, "coefficient": ["intercept", "slope"]}
dims = {"line": ["coefficient"], "offset": ["coefficient"], "scale": ["coefficient"]}
idata = pyro_dgm.to_arviz(by_hmc, coords=coords, dims=dims)
print("divergent draws:", int(by_hmc.sample_stats["diverging"].sum()))
az.summary(idata, var_names=["line", "scale", "noise"])

# %%
# The slopes of the age groups in the original units, by guide and by HMC.  HMC's intervals are wider, especially in
# groups with few patients: the product of ``scale`` and ``offset`` is far from Gaussian, but the guide is Gaussian in
# the unconstrained latents.

to_units = table.target.std() / bmi.std()
guide_idata = pyro_dgm.to_arviz(by_guide, coords=coords, dims=dims)
figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for shift, (name, source) in zip((-0.1, 0.1), {"guide": guide_idata, "HMC": idata}.items()):
    slopes = to_units * source.posterior["line"].sel(coefficient="slope")
    low, middle, high = slopes.quantile([0.05, 0.5, 0.95], dim=("chain", "draw")).values
    places = np.arange(len(labels)) + shift
    axes.errorbar(
        places,
        middle,
        [middle - low, high - middle],
        fmt="o",
        capsize=3,
        label=f"{name}, 90 % interval",
    )
axes.set_xticks(range(len(labels)), labels)
axes.set_xlabel("age group (years)")
axes.set_ylabel("slope (progression score\nper kg/m²)")
axes.legend(fontsize="small")
plt.show()

# %%
# Compare with a pooled model
# ---------------------------
#
# ``to_arviz`` computes the log-likelihood of each patient, which ArviZ uses for leave-one-out
# cross-validation (in nats; higher is better).

pooled_draws = pyro_dgm.sample_posterior(
    pooled, data, method=kernel, num_samples=80, num_chains=32, seed=0, progress=False
)
az.compare({"hierarchical": idata, "pooled": pyro_dgm.to_arviz(pooled_draws)})

# %%
# The difference is smaller than its standard error (``dse``): these data cannot distinguish the two
# models.  The overlapping intervals of the slopes above agree with this.
