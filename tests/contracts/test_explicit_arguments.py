"""Public constructors show their arguments: none takes ``**kwargs`` that it hands on."""

from __future__ import annotations

import inspect

import pytest

from pyro_dgm import guides, models
from pyro_dgm.infer import mcmc, objectives, smc

PUBLIC = {
    **mcmc.KERNELS,
    **mcmc.DISCRETE_KERNELS,
    "Langevin.from_recipe": mcmc.Langevin.from_recipe,
    **objectives.OBJECTIVES,
    **objectives.ENERGY_OBJECTIVES,
    **models.FAMILIES,
    **{f"guides.{name}": getattr(guides, name) for name in guides.__all__},
    **{f"smc.{name}": getattr(smc, name) for name in smc.__all__},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_named(name):
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    assert parameters
    assert [p.name for p in parameters if p.kind is p.VAR_KEYWORD] == []


@pytest.mark.parametrize("name", [*mcmc.KERNELS, *mcmc.DISCRETE_KERNELS])
def test_every_argument_of_a_kernel_is_described(name):
    kernel = {**mcmc.KERNELS, **mcmc.DISCRETE_KERNELS}[name]
    text = inspect.getdoc(kernel)
    assert [p for p in inspect.signature(kernel).parameters if f":param {p}:" not in text] == []


SHARED = {"temperature", "init_strategy", "compile", "transforms", "max_plate_nesting"}


@pytest.mark.parametrize("name", mcmc.KERNELS)
def test_every_kernel_takes_what_all_kernels_take(name):
    assert set(inspect.signature(mcmc.KERNELS[name]).parameters) >= SHARED | {"model", "potential_fn", "step_size"}
