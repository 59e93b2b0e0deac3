"""One contract over the families whose density is known up to a constant.

What the contract of the other families asks and cannot be had here: a bound on the likelihood by the objectives for
normalised programs (they refuse these), and a guide with sites.  What is asked instead: an energy, chains, a log
normaliser, and training by the objectives for energies.
"""

import json

import pyro
import pytest
import torch
from pyro import poutine

import pyro_dgm
from pyro_dgm.distributions import UnnormalizedDistribution
from pyro_dgm.infer import ELBO, ContrastiveDivergence, PersistentCD
from pyro_dgm.models import DBM, EBM, ENERGY_FAMILIES, RBM, BoltzmannMachine, EnergyFamily

CASES = {
    "RBM": (lambda: RBM(6, 4), lambda: torch.randint(2, (5, 6)).float()),
    "RBM-image": (lambda: RBM(6, 4, event_shape=(1, 2, 3)), lambda: torch.randint(2, (5, 1, 2, 3)).float()),
    "RBM-gaussian": (lambda: RBM(6, 4, "gaussian", scale=0.5), lambda: torch.randn(5, 6)),
    "RBM-categorical": (
        lambda: RBM(3, 4, "categorical", num_categories=3),
        lambda: torch.nn.functional.one_hot(torch.randint(3, (5, 3)), 3).float(),
    ),
    "DBM": (lambda: DBM(6, (4, 3)), lambda: torch.randint(2, (5, 6)).float()),
    "DBM-three": (lambda: DBM(6, (4, 3, 2), num_mean_field=5), lambda: torch.randint(2, (5, 6)).float()),
    "BoltzmannMachine": (lambda: BoltzmannMachine(6), lambda: torch.randint(2, (5, 6)).float()),
    "EBM": (lambda: EBM((6,), hidden=(8,)), lambda: torch.randn(5, 6)),
    "EBM-conv": (lambda: EBM((1, 5, 6), "conv", (4, 8), base_scale=0.5), lambda: torch.rand(5, 1, 5, 6)),
    "EBM-cold": (lambda: EBM((2, 3), base=None, hidden=(8,), temperature=0.01), lambda: torch.randn(5, 2, 3)),
}
every = pytest.mark.parametrize("case", list(CASES))
#: those whose normaliser is a sum over states, or annealed by sweeps of their own
countable = pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("EBM")])


def make(case):
    torch.manual_seed(0)
    family, batch = CASES[case]
    return family(), batch()


def test_every_family_is_under_contract():
    assert {case.split("-")[0] for case in CASES} == set(ENERGY_FAMILIES)


@every
def test_one_observed_site_in_the_plate_of_the_data(case):
    family, x = make(case)
    assert isinstance(family, EnergyFamily)
    assert not family.normalized
    trace = poutine.trace(family.model).get_trace(x)
    assert trace.observation_nodes == [family.obs_name]
    assert [n for n in trace.stochastic_nodes if n != "data"] == []
    site = trace.nodes[family.obs_name]
    assert [f.name for f in site["cond_indep_stack"]] == ["data"]
    assert isinstance(site["fn"], UnnormalizedDistribution)
    assert site["fn"].batch_shape == (5,)
    assert poutine.trace(family.guide).get_trace(x).stochastic_nodes == []


@every
def test_distribution_and_its_chains(case):
    family, x = make(case)
    law = family.distribution()
    assert law.log_prob(x).shape == (5,)
    assert law.expand([2, 5]).log_prob(x).shape == (2, 5)
    assert law.support.check(x).all()
    assert law.sample((3,)).shape == (3, *family.event_shape)
    assert law.support.check(law.sample((3,))).all()
    state = law.mcmc_step(law.state_of(x), 2)
    assert state.shape == law.initial_state(5).shape
    assert not state.requires_grad
    assert law.value_of(state).shape == x.shape
    assert law.state_log_prob(state).shape == (5,)
    assert torch.equal(law.value_of(law.state_of(x)), x)


@every
@pytest.mark.parametrize("objective", [ContrastiveDivergence(2), PersistentCD(num_chains=7)], ids=["cd", "pcd"])
def test_energy_objectives_reach_every_parameter(case, objective):
    family, x = make(case)
    objective(family.model, family.guide)(x).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in family.parameters())
    assert any(p.grad.abs().max() > 0 for p in family.parameters())
    assert not pyro.get_param_store()


@every
def test_bounds_are_refused(case):
    family, x = make(case)
    with pytest.raises(ValueError, match="has a density known up to a constant"):
        ELBO()(family.model, family.guide)(x)


@countable
def test_log_normalizer(case):
    family, x = make(case)
    exact = family.log_normalizer("exact")
    assert exact.value.dtype == torch.float64
    assert exact.standard_error == 0
    found = family.log_normalizer("ais", num_temperatures=50, num_chains=40, seed=0)
    assert abs(float(found) - float(exact)) < max(5 * float(found.standard_error), 1e-3)
    assert family.log_likelihood(x, exact).shape == (5,)
    torch.testing.assert_close(family.log_likelihood(x), family.log_likelihood(x, float(exact)))


@every
def test_moves_to_float64_and_through_a_state_dict(case):
    family, x = make(case)
    other = CASES[case][0]()
    other.load_state_dict(family.state_dict())
    family, other = family.double(), other.double()
    energies = [f.free_energy(x.double()) for f in (family, other)]
    assert energies[0].dtype == torch.float64
    assert torch.equal(*energies)


@every
def test_config_is_json_and_rebuilds_the_family(case):
    family, x = make(case)
    config = json.loads(json.dumps(family.config()))
    rebuilt = ENERGY_FAMILIES[case.split("-")[0]](**config)
    rebuilt.load_state_dict(family.state_dict())
    assert torch.equal(rebuilt.free_energy(x), family.free_energy(x))


@every
def test_bad_batches_are_named(case):
    family, x = make(case)
    with pytest.raises(TypeError, match="x must be a tensor"):
        family.check_batch([1, 2])
    with pytest.raises(ValueError, match="x must have shape"):
        family.check_batch(x[..., :-1])
    bad = x.clone()
    bad[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        family.check_batch(bad)


@every
def test_fit_trains_it(case):
    family, x = make(case)
    before = {k: v.clone() for k, v in family.state_dict().items()}
    run = pyro_dgm.fit(family, x, objective=PersistentCD(num_chains=10), epochs=2, validation=x, seed=0, progress=False)
    assert len(run.history["train"]) == len(run.history["validation"]) == 2
    assert any(not torch.equal(before[k], v) for k, v in family.state_dict().items())
