"""Every distribution that Pyro and torch share: log-density and gradient on JAX against torch's, in float64."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer import CannotCapture
from pyro_dgm.interop.numpyro import CannotConvert, to_jax
from tests.interop.distribution_cases import CONTINUOUS, OBSERVED, model_of

TOLERANCE = 1e-10

VALUES = "its structure depends on values of tensors"
#: what is refused, and why: no bijection to the support, a look at values, or a fault of torch's or Pyro's own
REFUSED: dict[str, tuple[type[Exception], str | None]] = {
    "GeneralizedPareto": (CannotCapture, "Double did not match Float"),  # its log_prob makes float32 numbers
    "GaussianScaleMixture": (ValueError, "'z' has a distribution without support"),
    "ProjectedNormal": (ValueError, "support Sphere .*no bijection"),
    "Wishart": (ValueError, "support PositiveDefinite.*no bijection"),
    "NanMaskedNormal": (CannotCapture, VALUES),
    "NanMaskedMultivariateNormal": (CannotCapture, VALUES),
    "SineBivariateVonMises": (CannotCapture, VALUES),
}


def refused(name, model):
    if name not in REFUSED:
        return False
    error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        to_jax(model)
    return True


def check(model):
    density = to_jax(model)
    assert density.x64
    assert density.check(rtol=TOLERANCE) <= TOLERANCE
    assert not density.callbacks


#: seconds to compile, second forms of one distribution, and Pyro's own
LONG = {"GaussianHMM", "DiscreteHMM"} | {
    name
    for name in (*CONTINUOUS, *OBSERVED)
    if " " in name or (not hasattr(torch.distributions, name) and name not in REFUSED)
}


def slowly(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]


@pytest.mark.parametrize("name", slowly(CONTINUOUS))
def test_as_a_latent(name):
    model = model_of(CONTINUOUS[name])
    if not refused(name, model):
        check(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CONTINUOUS))
def test_with_a_draw_observed(name):
    torch.manual_seed(0)
    make = CONTINUOUS[name]
    value = make(torch.tensor([1.1, 0.8], dtype=torch.float64)).sample()
    model = model_of(make, value)
    if name == "GaussianScaleMixture":  # its log_prob writes into what its gradient needs
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            to_jax(model)
    elif name in ("ProjectedNormal", "Wishart") or not refused(name, model):
        check(model)  # a value on the support needs no bijection to it


def test_generalized_pareto_where_float64_is_the_default():
    """Torch's log-density of it makes numbers of the default type, and refuses to mix types.

    Observed alone: torch says of its support that it ends at infinity, which no bijection reaches.
    """
    torch.set_default_dtype(torch.float64)
    try:
        check(model_of(CONTINUOUS["GeneralizedPareto"], torch.tensor([0.4, 2.5])))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", slowly(OBSERVED))
def test_observed(name):
    model = model_of(*OBSERVED[name])
    if not refused(name, model):
        check(model)


def test_every_shared_distribution_has_a_case():
    """By class: a distribution that torch or Pyro gains must get a case, or a reason here."""
    cases = {name.split()[0] for name in (*CONTINUOUS, *OBSERVED)}
    shared = {
        name
        for name in torch.distributions.__all__
        if isinstance(getattr(torch.distributions, name), type)
        and issubclass(getattr(torch.distributions, name), torch.distributions.Distribution)
        and hasattr(dist, name)
    }
    bases = {"Distribution", "ExponentialFamily"}
    assert shared - cases - bases == set(), "no case"


def test_refused_is_said_why():
    with pytest.raises((CannotConvert, ValueError)):
        to_jax(model_of(lambda p: dist.Poisson(p[0])))
