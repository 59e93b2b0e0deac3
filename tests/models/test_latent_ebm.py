"""The latent-space energy-based model: a program like any other, whose prior learns the codes."""

from __future__ import annotations

import json

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

import pyro_dgm
from pyro_dgm.distributions import EnergyDistribution, GaussianLikelihood
from pyro_dgm.infer import ELBO, ShortRunML
from pyro_dgm.infer.mcmc import HMC
from pyro_dgm.models import LatentEBM

SMALL = {"hidden": (16,), "prior_hidden": (8,), "num_steps": 5}
CASES = {
    "mlp": (lambda: LatentEBM((5,), 3, **SMALL), lambda: torch.randn(4, 5)),
    "conv": (
        lambda: LatentEBM((6, 7), 3, "bernoulli", "conv", (8, 4), prior_hidden=(8,), num_steps=5),
        lambda: torch.rand(4, 6, 7).round(),
    ),
    "fixed": (lambda: LatentEBM((5,), 2, GaussianLikelihood((5,), 0.3), **SMALL), lambda: torch.randn(4, 5)),
}
every = pytest.mark.parametrize("case", list(CASES))


def make(case):
    torch.manual_seed(0)
    program, batch = CASES[case]
    return program(), batch()


@every
def test_sites_and_plates(case):
    program, x = make(case)
    trace = poutine.trace(program.model).get_trace(x)
    assert set(trace.stochastic_nodes) - {"data"} == {"z"}
    assert trace.observation_nodes == ["x"]
    assert isinstance(trace.nodes["z"]["fn"], EnergyDistribution)
    for name in ("z", "x"):
        assert [f.name for f in trace.nodes[name]["cond_indep_stack"]] == ["data"]
        assert trace.nodes[name]["fn"].batch_shape == (4,)
    assert poutine.trace(program.guide).get_trace(x).stochastic_nodes == []


@every
def test_training_reaches_every_parameter_and_stores_nothing(case):
    program, x = make(case)
    ShortRunML(3)(program.model, program.guide)(x).backward()
    missing = [n for n, p in program.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []
    assert not pyro.get_param_store()


@every
def test_config_and_state_dict_rebuild_it(case):
    program, x = make(case)
    config = json.loads(json.dumps(program.config()))
    likelihood = config.pop("likelihood")
    if likelihood["name"] == "gaussian":
        config["likelihood"] = GaussianLikelihood(config["event_shape"], likelihood["scale"], likelihood["min_scale"])
    else:
        config["likelihood"] = likelihood["name"]
    other = LatentEBM(**config)
    other.load_state_dict(program.state_dict())
    z = torch.randn(4, program.latent_dim)
    assert torch.equal(program.log_joint(x, z), other.log_joint(x, z))
    assert program.double().log_joint(x.double(), z.double()).dtype == torch.float64


@every
def test_tasks(case):
    program, x = make(case)
    assert program.sample(3, seed=0).shape == (3, *program.event_shape)
    assert torch.equal(program.sample(3, seed=0), program.sample(3, seed=0))
    assert program.sample_prior(3, num_steps=2).shape == (3, program.latent_dim)
    z = program.posterior(x, seed=0, kernel=HMC(step_size=0.1), num_steps=3)
    assert z.shape == (4, program.latent_dim) and not z.requires_grad
    assert program.reconstruct(x, seed=0).shape == x.shape
    joint = poutine.trace(poutine.condition(program.model, {"z": z})).get_trace(x).log_prob_sum()
    torch.testing.assert_close(program.log_joint(x, z).sum(), joint)


def test_posterior_by_hmc_and_bounds_once_the_prior_is_fixed():
    program, x = make("fixed")
    post = pyro_dgm.sample_posterior(program, x, method="hmc", num_samples=10, num_chains=2, seed=0, progress=False)
    idata = pyro_dgm.to_arviz(post)
    assert idata.posterior["z"].shape == (2, 10, 4, 2)
    guide = AutoNormal(program.model)
    with pytest.raises(ValueError, match="hold it fixed"):
        ELBO()(program.model, guide)(x)
    program.requires_grad_(False)
    assert torch.isfinite(ELBO()(program.model, guide)(x))
    pyro.clear_param_store()


def test_prior_learns_the_aggregate_posterior():
    # Codes of data in three clusters: the prior's draws come nearer to them than normal ones are.
    torch.manual_seed(0)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.8], [-1.0, -1.8]])
    x = centres[torch.randint(3, (300,))] + 0.1 * torch.randn(300, 2)
    program = LatentEBM((2,), 2, GaussianLikelihood((2,), 0.3), hidden=(32,), prior_hidden=(32, 32), num_steps=40)
    pyro_dgm.fit(
        program, x, objective=ShortRunML(20), epochs=60, batch_size=100, seed=0, progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=3e-3),
    )  # fmt: skip
    codes = program.posterior(x, num_steps=100, seed=1)
    to_prior = float(pyro_dgm.ops.mmd(codes, program.sample_prior(300, num_steps=200, seed=2)))
    to_normal = float(pyro_dgm.ops.mmd(codes, torch.randn(300, 2)))
    assert to_prior < 0.5 * to_normal


@pytest.mark.slow
def test_prior_learns_the_aggregate_posterior_of_digits():
    # What benchmarks/latent_ebm.py measures over seeds; here one seed.
    data = pyro_dgm.datasets.digits()
    torch.manual_seed(0)
    program = LatentEBM(
        (8, 8), 2, GaussianLikelihood((8, 8), 0.15), hidden=(64, 64), prior_hidden=(64, 64),
        step_size=0.2, num_steps=60,
    )  # fmt: skip
    pyro_dgm.fit(
        program, data.train, objective=ShortRunML(20, step_size=0.1), epochs=60, batch_size=100, seed=0, progress=False,
        optimizer=torch.optim.Adam(
            [
                {"params": program.decoder.parameters(), "lr": 3e-3},
                {"params": program.energy.parameters(), "lr": 3e-3},
            ]
        ),
    )  # fmt: skip

    def distance(a, b):  # of mean embeddings, not its square
        return float(pyro_dgm.ops.mmd(a, b, scales=(0.1, 1.0, 10.0)).clamp(min=0).sqrt())

    torch.manual_seed(1)
    codes = program.posterior(data.train, num_steps=20)
    to_prior = distance(codes, program.sample_prior(len(codes)))
    to_normal = distance(codes, torch.randn_like(codes))
    assert to_normal > 0.1
    assert to_prior < 0.5 * to_normal


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LatentEBM((5,), temperature=0.0), "temperature must be positive and finite, got 0"),
        (lambda: LatentEBM((5,), 0), "latent_dim must be an integer of at least 1, got 0"),
        (lambda: LatentEBM((5,), network="unet"), "network must be 'mlp', 'conv' or a module, got 'unet'"),
        (lambda: LatentEBM((5,), num_steps=0), "num_steps must be an integer of at least 1, got 0"),
        (lambda: LatentEBM((5,), likelihood="poisson"), "likelihood must be one of"),
        (lambda: LatentEBM((5,), likelihood="bernoulli").posterior(torch.full((2, 5), 0.5)), "outside"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
