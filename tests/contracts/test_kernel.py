"""One body for every kernel: what the drivers, ours and Pyro's, rely on."""

from __future__ import annotations

import inspect
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

from pyro_dgm.infer.mcmc import KERNELS, MCMC, Info, KernelState

pytestmark = pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)

#: a step size at which a chain of seven dimensions moves sometimes and not always, where it is not HMC's 1.5
STEP_SIZES = {"random-walk": 0.7, "mclmc-adjusted": 6.0}


def fixed(make, step_size):
    """A kernel on the potential whose step size stays what it is."""
    learns = {"adapt_step_size": False} if "adapt_step_size" in inspect.signature(make).parameters else {}
    kernel = make(potential_fn=potential, step_size=step_size, **learns)
    kernel.condition()
    return kernel


def model(x):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale).to_event(1), obs=x)


X = torch.tensor([[0.5, 1.0], [-0.5, 0.0], [1.0, 1.0]])


def potential(u):
    return 0.5 * (u["a"].square().sum((-1, -2)) + u["b"].square())


def start(chains, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(chains, 2, 3, generator=g, dtype=dtype),
        "b": torch.randn(chains, generator=g, dtype=dtype),
    }


def test_is_a_pyro_kernel_with_defaults(make):
    kernel = make(model)
    assert isinstance(kernel, MCMCKernel)
    assert kernel.model is model
    assert kernel.transforms is None
    assert make(potential_fn=potential).transforms == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chains", [1, 7])
def test_init_and_step_keep_shapes_and_dtypes(make, chains, dtype):
    kernel = make(potential_fn=potential)
    kernel.condition()
    params = start(chains, dtype)
    state = kernel.init(params, torch.Generator().manual_seed(0))
    assert isinstance(state, KernelState)
    new, info = kernel.step(state)
    assert isinstance(info, Info)
    for k, v in params.items():
        assert new.position[k].shape == v.shape
        assert new.position[k].dtype == dtype
        if make.uses_gradient:
            assert new.gradient[k].shape == v.shape
    for field in ("acceptance_rate", "accepted", "diverging", "energy", "n_steps"):
        assert getattr(info, field).shape == (chains,)
    assert bool(((info.acceptance_rate >= 0) & (info.acceptance_rate <= 1)).all())
    torch.testing.assert_close(new.potential, potential(new.position))


def test_step_is_functional(make):
    """The same state and generator state give the same step; the argument is not changed; a rejected chain stays."""
    kernel = fixed(make, STEP_SIZES.get(make.name, 1.5))
    state = kernel.init(start(50), torch.Generator().manual_seed(0))
    position = {k: v.clone() for k, v in state.position.items()}
    saved = state.generator.get_state()
    one, info = kernel.step(state)
    assert all(torch.equal(state.position[k], position[k]) for k in position)
    state.generator.set_state(saved)
    two, _ = kernel.step(state)
    moved = one.position["b"] != position["b"]
    assert torch.equal(moved, info.accepted)
    assert bool(moved.any())
    assert bool((~moved).any()) == make.adjusted
    for k in position:
        assert torch.equal(one.position[k], two.position[k])


def test_chains_are_independent(make):
    """Moving one chain's start changes no other chain."""
    kernel = fixed(make, 0.5)
    ends = []
    for shift in (0.0, 5.0):
        params = start(6)
        params["b"][3] += shift
        state = kernel.init(params, torch.Generator().manual_seed(1))
        for _ in range(5):
            state, _ = kernel.step(state)
        ends.append(state.position["a"])
    others = [0, 1, 2, 4, 5]
    assert torch.equal(ends[0][others], ends[1][others])


def test_setup_resets_everything(make):
    kernel = make(model)
    pyro.set_rng_seed(0)
    kernel.setup(3, X)
    params = kernel.initial_params
    for _ in range(5):
        params = kernel.sample(params)
    first = params
    pyro.set_rng_seed(0)
    kernel.setup(3, X)
    params = kernel.initial_params
    for _ in range(5):
        params = kernel.sample(params)
    assert all(torch.equal(first[k], params[k]) for k in first)
    assert set(kernel.transforms) == {"mu", "scale"}
    keys = set(kernel.diagnostics())
    kernel.cleanup()
    assert set(kernel.diagnostics()) == keys
    assert all(isinstance(v, str) for v in kernel.logging().values())


def test_pickles_after_a_run(make):
    kernel = make(model)
    kernel.setup(1, X)
    kernel.sample(kernel.initial_params)
    copy = pickle.loads(pickle.dumps(kernel))
    copy.setup(1, X)
    assert set(copy.sample(copy.initial_params)) == {"mu", "scale"}


def test_runs_in_both_drivers(make):
    ours = MCMC(make(model), 10, 10, 3, seed=0, progress=False)
    ours.run(X)
    assert ours.get_samples(group_by_chain=True)["mu"].shape == (3, 10, 2)
    assert set(ours.posterior.sample_stats) >= {"lp", "acceptance_rate", "diverging", "step_size", "n_steps", "energy"}
    theirs = pyro.infer.MCMC(make(model), 10, 10, disable_progbar=True)
    theirs.run(X)
    assert theirs.get_samples()["mu"].shape == (10, 2)
    assert bool((theirs.get_samples()["scale"] > 0).all())
