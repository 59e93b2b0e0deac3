"""Settings that all kernels have, and pass on to their base."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from pyro_dgm.infer import mcmc

KERNELS = ("MALA", "ChEES", "MCLMC", "AdjustedMCLMC", "Langevin", "SGLD", "RandomWalk", "HMC")


def model() -> None:
    with pyro.plate("rows", 2):
        pyro.sample("scale", dist.LogNormal(0.0, 0.5))


@pytest.mark.parametrize("name", KERNELS)
def test_transforms_and_nesting_reach_the_potential(name: str):
    softplus = transforms.SoftplusTransform().inv
    kernel = getattr(mcmc, name)(
        model, step_size=0.1, transforms={"scale": softplus}, max_plate_nesting=2, init_strategy="prior", compile=False
    )
    run = mcmc.MCMC(kernel, num_samples=5, warmup_steps=0, num_chains=3, seed=0, progress=False)
    run.run()
    assert bool((run.get_samples(group_by_chain=True)["scale"] > 0).all())
    u = torch.tensor([[-1.0, 2.0]])
    assert torch.allclose(kernel.condition().constrain({"scale": u})[0]["scale"], softplus.inv(u))


@pytest.mark.parametrize("name", KERNELS)
def test_unknown_settings_are_refused(name: str):
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such_setting'"):
        getattr(mcmc, name)(model, no_such_setting=1)
