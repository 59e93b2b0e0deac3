"""posteriordb's reference draws against HMC, ChEES and NumPyro's NUTS on the same models written for Pyro."""

from __future__ import annotations

import functools

import arviz
import numpy as np
import pytest

import pyro_dgm
from pyro_dgm.infer.mcmc import HMC, ChEES
from pyro_dgm.interop.numpyro import run_nuts, to_jax
from tests.posteriordb import INITIAL, POSTERIORS, by_parameter, data_of, reference

pytestmark = [pytest.mark.needs_data("posteriordb"), pytest.mark.slow]


def method_of(name, model):
    init = {"init_strategy": INITIAL[model]} if model in INITIAL else {}
    return {"hmc": HMC(**init), "chees": ChEES(**init)}.get(name, name)


def in_standard_errors(found, want):
    """Distance of mean and of standard deviation, each in the Monte Carlo error of both runs."""
    out = []
    for method, statistic in (("mean", np.mean), ("sd", np.std)):
        error = np.hypot(*(float(arviz.mcse(draws, method=method)) for draws in (found, want)))
        out.append(abs(statistic(found) - statistic(want)) / error)
    return out


@pytest.mark.parametrize("method", ["hmc", "chees", "nuts-numpyro"])
@pytest.mark.parametrize("name", list(POSTERIORS))
def test_moments_are_those_of_the_reference_draws(name, method):
    model, data = POSTERIORS[name], data_of(name)
    chains, draws = (4, 2000) if method == "nuts-numpyro" else (32, 500)
    options = {"num_samples": draws, "warmup_steps": 600, "num_chains": chains, "seed": 1, "progress": False}
    if method == "nuts-numpyro":
        density = to_jax(functools.partial(model, data), init_strategy=INITIAL.get(model, "uniform"))
        post = run_nuts(density, **options)
    else:
        post = pyro_dgm.sample_posterior(functools.partial(model, data), method=method_of(method, model), **options)
    found, want = by_parameter(model, data, post.samples), reference(name)
    assert set(want) <= set(found)
    far = {key: in_standard_errors(found[key], want[key]) for key in want}
    assert max(max(errors) for errors in far.values()) < 4, far
    assert max(float(arviz.rhat(found[key])) for key in want) < 1.02
