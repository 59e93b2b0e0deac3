"""One body for every kernel of discrete states: what the drivers, ours and Pyro's, rely on."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pyro
import pytest
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

from pyro_dgm.capture.static_graph import agreement, record
from pyro_dgm.infer.mcmc import DISCRETE_KERNELS, MCMC, Gibbs, GibbsWithGradients, Info, KernelState, ParallelTempering

W = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
FIELDS = ("acceptance_rate", "accepted", "diverging", "energy", "n_steps")


def potential(s):
    return -torch.einsum("ci,ij,cj->c", s["v"].float(), W, s["h"].float()) + 0.3 * s["v"].float().sum(-1)


def hidden(s, u):
    return (u < torch.sigmoid(s["v"].float() @ W)).to(s["h"].dtype)


def visible(s, u):
    return (u < torch.sigmoid(s["h"].float() @ W.T - 0.3)).to(s["v"].dtype)


#: each kernel on the same small Boltzmann machine
MAKE = {
    "gibbs": lambda: Gibbs({"h": hidden, "v": visible}, potential_fn=potential),
    "gibbs-with-gradients": lambda: GibbsWithGradients(potential_fn=potential),
    "tempered": lambda: ParallelTempering(GibbsWithGradients(potential_fn=potential), num_temperatures=3),
}
pytestmark = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def test_every_discrete_kernel_is_here(make):
    assert set(DISCRETE_KERNELS) <= set(MAKE)
    assert all(kernel.discrete for kernel in DISCRETE_KERNELS.values())


def start(chains, dtype=torch.int64):
    g = torch.Generator().manual_seed(1)
    return {k: torch.randint(2, (chains, n), generator=g).to(dtype) for k, n in (("v", 3), ("h", 2))}


def begun(make, params, seed=7):
    kernel = make()
    kernel.condition()
    return kernel, kernel.init(params, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("chains", [1, 7])
def test_init_and_step_keep_shapes_and_dtypes(make, chains, dtype):
    params = start(chains, dtype)
    kernel, state = begun(make, params)
    assert isinstance(kernel, MCMCKernel)
    assert isinstance(state, KernelState)
    for _ in range(3):
        new, info = kernel.step(state)
        assert isinstance(info, Info)
        for k, v in params.items():
            assert new.position[k].shape == v.shape
            assert new.position[k].dtype == dtype
            assert bool(((new.position[k] == 0) | (new.position[k] == 1)).all())
        for field in FIELDS:
            assert getattr(info, field).shape == (chains,)
        assert bool(((info.acceptance_rate >= 0) & (info.acceptance_rate <= 1)).all())
        torch.testing.assert_close(new.potential, potential(new.position))
        assert {k: v.shape for k, v in new.tensors().items()} == {k: v.shape for k, v in state.tensors().items()}
        assert new.iteration == state.iteration + 1
        state = new


def test_step_is_functional(make):
    kernel, state = begun(make, start(50))
    position = {k: v.clone() for k, v in state.position.items()}
    saved = state.generator.get_state()
    one, info = kernel.step(state)
    assert all(torch.equal(state.position[k], position[k]) for k in position)
    state.generator.set_state(saved)
    two, _ = kernel.step(state)
    assert all(torch.equal(one.position[k], two.position[k]) for k in position)
    moved = (one.position["v"] != position["v"]).any(-1) | (one.position["h"] != position["h"]).any(-1)
    assert bool(moved.any())
    assert bool((info.accepted | ~moved).all())  # a chain that was not accepted stays


def test_noise_depends_on_shapes_and_iteration_alone(make):
    """As a driver needs it that draws the numbers of many transitions beforehand."""
    kernel, state = begun(make, start(5))
    later, _ = kernel.step(state)
    for at in (0, 1):
        both = []
        for s in (state, later):
            s.generator.manual_seed(3)
            both.append(kernel.noise(replace(s, iteration=at)))
        assert both[0].keys() == both[1].keys()
        assert all(torch.equal(both[0][k], both[1][k]) for k in both[0])


def test_chains_are_independent(make):
    ends = []
    for flip in (False, True):
        params = start(6)
        if flip:
            params["v"][3] = 1 - params["v"][3]
        kernel, state = begun(make, params)
        for _ in range(5):
            state, _ = kernel.step(state)
        ends.append(state.position)
    others = [0, 1, 2, 4, 5]
    assert all(torch.equal(ends[0][k][others], ends[1][k][others]) for k in ends[0])


def test_transition_is_operations_on_tensors(make):
    """Recorded once, it gives what the kernel gives at another state with other numbers."""
    kernel, state = begun(make, start(4))
    names, drawn = list(state.tensors()), list(kernel.noise(state))

    def flat(*values):
        tensors = dict(zip(names, values, strict=False))
        numbers = dict(zip(drawn, values[len(names) :], strict=True))
        new, info = kernel.transition(state.with_tensors(tensors), numbers)
        return [*new.tensors().values(), *(getattr(info, field) for field in FIELDS)]

    def inputs(at):
        return [*at.tensors().values(), *kernel.noise(at).values()]

    graph = record(flat, inputs(state))
    other, _ = kernel.step(state)
    values = inputs(other)
    assert agreement(flat(*values), graph(*values)) == ""


def test_setup_resets_everything_and_it_pickles(make):
    kernel = make()
    ends = []
    for k in (kernel, kernel, pickle.loads(pickle.dumps(kernel))):
        pyro.set_rng_seed(0)
        k.initial_params = {name: v[0] for name, v in start(1).items()}
        k.setup(3)
        params = k.initial_params
        for _ in range(5):
            params = k.sample(params)
        ends.append(params)
        keys = set(k.diagnostics())
        k.cleanup()
        assert set(k.diagnostics()) == keys
        assert k.transforms == {}
    assert all(torch.equal(ends[0][name], end[name]) for end in ends for name in ends[0])


def test_runs_in_both_drivers(make):
    for chain_method in ("vectorized", "sequential"):
        ours = MCMC(make(), 10, 10, 3, chain_method, seed=0, progress=False)
        ours.run(initial_params=start(3))
        assert ours.get_samples(group_by_chain=True)["v"].shape == (3, 10, 3)
        assert set(ours.posterior.sample_stats) >= {"lp", *FIELDS} - {"accepted"}
    theirs = pyro.infer.MCMC(
        make(), 10, 10, initial_params={k: v[0] for k, v in start(1).items()}, disable_progbar=True
    )
    theirs.run()
    assert theirs.get_samples()["v"].shape == (10, 3)


def test_data_are_refused_with_a_potential(make):
    with pytest.raises(ValueError, match="takes no data"):
        make().condition(torch.zeros(3))
