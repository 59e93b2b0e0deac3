"""What every family has, whether its densities are normalised or not."""

from __future__ import annotations

import json

import pytest
import torch

from pyro_dgm.models import FAMILIES, LatentEBM
from tests.contracts import test_energy_family, test_family

CASES = {
    **test_family.CASES,
    **test_energy_family.CASES,
    "LatentEBM": (lambda: LatentEBM((4, 4), 2, "bernoulli", hidden=(8,)), lambda: torch.rand(5, 4, 4).round()),
}
every = pytest.mark.parametrize("case", list(CASES))


def make(case):
    torch.manual_seed(0)
    family, batch = CASES[case]
    return family(), batch()


def test_every_family_is_under_contract():
    assert {case.split("-")[0] for case in CASES} == set(FAMILIES)


@every
def test_samples_have_the_shape_of_data_and_follow_the_seed(case):
    family, x = make(case)
    before = torch.get_rng_state()
    options = {"num_steps": 3} if "num_steps" in family.sample.__code__.co_varnames else {}
    draws = [family.sample(3, seed=seed, **options) for seed in (1, 1, 2)]
    assert draws[0].shape == (3, *x.shape[1:]) and not draws[0].requires_grad
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="num_samples must be"):
        family.sample(0)


@every
def test_its_configuration_is_json(case):
    family, _ = make(case)
    assert json.loads(json.dumps(family.config())) == family.config()


@every
def test_its_configuration_rebuilds_it(case):
    family, _ = make(case)
    rebuilt = FAMILIES[case.split("-")[0]](**json.loads(json.dumps(family.config())))
    rebuilt.load_state_dict(family.state_dict())
    options = {"num_steps": 3} if "num_steps" in family.sample.__code__.co_varnames else {}
    assert torch.equal(rebuilt.sample(3, seed=1, **options), family.sample(3, seed=1, **options))


@every
def test_what_is_not_conditional_takes_no_context(case):
    family, x = make(case)
    for given in (lambda: family.check_batch(x, torch.zeros(len(x))), lambda: family.sample(3, torch.zeros(3))):
        with pytest.raises(TypeError, match="not conditional"):
            given()


@every
def test_samples_pass_the_check_of_batches(case):
    family, x = make(case)
    family.check_batch(x)
    with pytest.raises((TypeError, ValueError)):
        family.check_batch(x[:, :-1])
