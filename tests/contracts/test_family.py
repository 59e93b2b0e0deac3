"""One contract over every family: a PyroModule with model and guide over the same batch."""

import pyro
import pytest
import torch
from pyro import poutine

from pyro_dgm.distributions import GaussianLikelihood
from pyro_dgm.infer import ELBO, IWAE
from pyro_dgm.models import FAMILIES, VAE, Family, FlowModel, LinearGaussian

CASES = {
    "LinearGaussian": (lambda: LinearGaussian(5, 2), lambda: torch.randn(4, 5)),
    "LinearGaussian-full-ppca": (
        lambda: LinearGaussian(5, 2, isotropic=True, guide_covariance="full"),
        lambda: torch.randn(4, 5),
    ),
    "VAE": (lambda: VAE((6, 7), 3, hidden=(16,)), lambda: torch.rand(4, 6, 7).round()),
    "VAE-conv": (lambda: VAE((2, 9, 12), 3, network="conv", hidden=(4, 8)), lambda: torch.rand(4, 2, 9, 12).round()),
    "VAE-gaussian": (lambda: VAE((5,), 3, "gaussian", hidden=(16,)), lambda: torch.randn(4, 5)),
    "VAE-tanh-floor": (
        lambda: VAE(
            (5,), 3, GaussianLikelihood((5,), "network", min_scale=0.3), hidden=(16,), activation=torch.nn.Tanh
        ),
        lambda: torch.randn(4, 5),
    ),
    "VAE-network-scale": (
        lambda: VAE((1, 8, 8), 3, GaussianLikelihood((1, 8, 8), "network"), "conv", (4,)),
        lambda: torch.randn(4, 1, 8, 8),
    ),
    "FlowModel": (lambda: FlowModel((3,), num_layers=2, hidden=(8,)), lambda: torch.randn(4, 3)),
    "FlowModel-maf": (
        lambda: FlowModel((2, 2), "affine_autoregressive", 2, (8,), "Tanh", options={"residual": True}),
        lambda: torch.randn(4, 2, 2),
    ),
    "FlowModel-uniform": (
        lambda: FlowModel((1, 2, 2), num_layers=2, hidden=(8,), dequantize="uniform", num_levels=16),
        lambda: torch.randint(16, (4, 1, 2, 2)).float(),
    ),
    "FlowModel-variational": (
        lambda: FlowModel((5,), num_layers=2, hidden=(8,), dequantize="variational", num_levels=16),
        lambda: torch.randint(16, (4, 5)).float(),
    ),
}
every = pytest.mark.parametrize("case", list(CASES))


def make(case):
    torch.manual_seed(0)
    family, batch = CASES[case]
    return family(), batch()


def test_every_family_is_under_contract():
    assert {case.split("-")[0] for case in CASES} == {name for name, family in FAMILIES.items() if family.normalized}


@every
def test_sites_and_plates(case):
    family, x = make(case)
    assert isinstance(family, Family)
    guide = poutine.trace(family.guide).get_trace(x)
    model = poutine.trace(poutine.replay(family.model, trace=guide)).get_trace(x)
    assert set(guide.stochastic_nodes) - {"data"} == set(model.stochastic_nodes) - {"data"}
    assert family.obs_name in model.observation_nodes
    for trace in (guide, model):
        for name in (*trace.stochastic_nodes, *trace.observation_nodes):
            if name != "data":
                assert [f.name for f in trace.nodes[name]["cond_indep_stack"]] == ["data"]
                assert trace.nodes[name]["fn"].batch_shape == (4,)


@every
def test_objectives_run_and_reach_every_parameter(case):
    family, x = make(case)
    assert IWAE(7).bound(family.model, family.guide, x).shape == (4,)
    ELBO()(family.model, family.guide)(x).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in family.parameters())
    assert not pyro.get_param_store()


@every
def test_moves_to_float64_and_through_a_state_dict(case):
    family, x = make(case)
    other = CASES[case][0]()
    other.load_state_dict(family.state_dict())
    family, other = family.double(), other.double()
    results = []
    for f in (family, other):
        torch.manual_seed(3)
        results.append(ELBO().bound(f.model, f.guide, x.double()))
    assert results[0].dtype == torch.float64
    assert torch.equal(*results)


@every
def test_config_is_json(case):
    import json

    family, _ = make(case)
    assert json.loads(json.dumps(family.config())) == family.config()


@every
def test_config_rebuilds_the_family(case):
    from pyro_dgm.cli.build import build_family

    family, x = make(case)
    rebuilt = build_family(case.split("-")[0], family.config())
    rebuilt.load_state_dict(family.state_dict())
    bounds = []
    for f in (family, rebuilt):
        torch.manual_seed(3)
        bounds.append(ELBO().bound(f.model, f.guide, x))
    assert torch.equal(*bounds)


@every
def test_bad_batches_are_named(case):
    family, x = make(case)
    with pytest.raises(TypeError, match="x must be a tensor"):
        family.check_batch([1, 2])
    with pytest.raises(ValueError, match="x must have shape"):
        family.check_batch(x[:, :-1])
    bad = x.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        family.check_batch(bad)


@every
def test_prior_predictive_has_the_shape_of_data(case):
    family, x = make(case)
    trace = poutine.trace(poutine.uncondition(family.model)).get_trace(x)
    assert trace.nodes[family.obs_name]["value"].shape == x.shape
