"""Our kernels in pyro.infer.MCMC: one chain, several in turn, several processes."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer.mcmc import KERNELS


def beta_binomial(k):
    p = pyro.sample("p", dist.Beta(torch.tensor(2.0).double(), torch.tensor(2.0).double()))
    pyro.sample("k", dist.Binomial(10, p), obs=k)


SUCCESSES = torch.tensor(7.0).double()
MEAN = 9.0 / 14.0
SD = math.sqrt(9 * 5 / (14**2 * 15))


#: a step size for kernels that do not adapt theirs, and few training steps for a flow of one dimension
SETTINGS = {
    "langevin": {"step_size": 0.5},
    "sgld": {"step_size": 0.5},
    "annealed-langevin": {"step_size": 0.5},
    "neutra": {"train_steps": 300},
}
#: those that want more than one dimension
TURNING = {"mclmc", "mclmc-adjusted"}


@pytest.mark.parametrize("name", sorted(set(KERNELS) - TURNING))
def test_one_chain(name):
    pyro.set_rng_seed(0)
    kernel = KERNELS[name](beta_binomial, **SETTINGS.get(name, {}))
    mcmc = pyro.infer.MCMC(kernel, 600, warmup_steps=300, disable_progbar=True)
    mcmc.run(SUCCESSES)
    p = mcmc.get_samples()["p"]
    assert p.shape == (600,)
    diagnostics = mcmc.diagnostics()
    ess = float(diagnostics["p"]["n_eff"])
    assert ess > 60
    assert abs(float(p.mean()) - MEAN) < 4 * SD / math.sqrt(ess)
    assert set(diagnostics) == {"p", "divergences", "acceptance rate", "step size"}
    assert 0.15 < diagnostics["acceptance rate"]["chain 0"] <= 1.0


@pytest.mark.parametrize("name", sorted(TURNING))
def test_a_direction_needs_two_dimensions(name):
    mcmc = pyro.infer.MCMC(KERNELS[name](beta_binomial), 5, warmup_steps=5, disable_progbar=True)
    with pytest.raises(ValueError, match="needs a target of two dimensions or more"):
        mcmc.run(SUCCESSES)


def test_chains_in_turn_start_anew():
    """Pyro runs more chains than processors one after another on one kernel object."""
    pyro.set_rng_seed(1)
    kernel = KERNELS["hmc"](beta_binomial)
    sampler = pyro.infer.mcmc.api._UnarySampler(kernel, 5, 5, 3, disable_progbar=True)
    chains: dict[int, list] = {}
    for value, chain in sampler.run(SUCCESSES):
        chains.setdefault(chain, []).append(value)
    assert sorted(chains) == [0, 1, 2]
    firsts = {float(values[1]) for values in chains.values()}
    assert len(firsts) == 3
    keys = [set(values[-1]) for values in chains.values()]
    assert keys[0] == keys[1] == keys[2] == {"divergences", "acceptance rate", "step size"}


def test_processes(monkeypatch):
    """Two worker processes; the kernel and its model are sent to them."""
    monkeypatch.setattr(pyro.infer.mcmc.api.mp, "cpu_count", lambda: 4)
    pyro.set_rng_seed(2)
    mcmc = pyro.infer.MCMC(
        KERNELS["hmc"](beta_binomial), 200, warmup_steps=200, num_chains=2, disable_progbar=True, mp_context="fork"
    )
    mcmc.run(SUCCESSES)
    p = mcmc.get_samples(group_by_chain=True)["p"]
    assert p.shape == (2, 200)
    assert not torch.equal(p[0], p[1])
    assert bool(((p > 0) & (p < 1)).all())
    assert set(mcmc.diagnostics()["step size"]) == {"chain 0", "chain 1"}


def test_potential_and_initial_values():
    """A bare potential from given values, and a chain moved from outside between two transitions."""
    kernel = KERNELS["hmc"](potential_fn=lambda u: 0.5 * (u["x"] - 3.0).square().sum(-1))
    start = {"x": torch.full((2,), 3.0)}
    mcmc = pyro.infer.MCMC(kernel, 50, warmup_steps=50, initial_params=start, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["x"].shape == (50, 2)

    pyro.set_rng_seed(0)
    kernel = KERNELS["mala"](
        potential_fn=lambda u: 0.5 * u["x"].square().sum(-1), step_size=1e-3, adapt_step_size=False
    )
    kernel.initial_params = start
    kernel.setup(0)
    kernel.sample(kernel.initial_params)
    moved = kernel.sample({"x": torch.full((2,), -7.0)})
    assert float((moved["x"] + 7.0).abs().max()) < 0.1


def test_moving_support_is_refused_by_name():
    def model():
        end = pyro.sample("end", dist.Uniform(1.0, 2.0))
        pyro.sample("inside", dist.Uniform(0.0, end))

    mcmc = pyro.infer.MCMC(KERNELS["hmc"](model), 5, warmup_steps=5, disable_progbar=True)
    with pytest.raises(ValueError, match=r"'inside'.*depends on other latents"):
        mcmc.run()


def test_sample_before_setup():
    with pytest.raises(RuntimeError, match=r"setup\(\)"):
        KERNELS["hmc"](beta_binomial).sample({"p": torch.tensor(0.0)})
