"""``pyro.infer.MCMC`` with our kernels beside Pyro's: what it calls, keeps, refuses and says."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.mcmc.util import initialize_model

from pyro_dgm.infer.mcmc import HMC, MALA, RandomWalk
from pyro_dgm.infer.mcmc import MCMC as Chains

KERNELS = [pyro.infer.HMC, HMC, MALA, RandomWalk]
OURS = [HMC, MALA, RandomWalk]


def model(y):
    with pyro.plate("groups", 2, dim=-1):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y), dim=-2):
            pyro.sample("y", dist.Normal(m, 0.5 + scale), obs=y)


Y = torch.tensor([[0.4, 1.0], [0.1, 1.4], [-0.2, 0.7]])


def names(kernel):
    return f"{kernel.__module__.split('.')[0]}.{kernel.__name__}"


def drive(kernel, *args, num_samples=6, warmup_steps=4, **settings):
    pyro.set_rng_seed(0)
    mcmc = pyro.infer.MCMC(kernel, num_samples, warmup_steps=warmup_steps, disable_progbar=True, **settings)
    mcmc.run(*args)
    return mcmc


@pytest.mark.parametrize("kernel", KERNELS, ids=names)
def test_hook_samples_diagnostics_and_summary(kernel, capsys):
    calls = []
    mcmc = drive(kernel(model), Y, hook_fn=lambda k, params, stage, i: calls.append((stage, i, set(params))))
    warmup = [s for s, _, _ in calls].count("Warmup")
    assert (warmup, len(calls)) == (4, 10)
    assert [i for _, i, _ in calls[4:]] == list(range(6))
    assert all(params == {"m", "scale"} for _, _, params in calls)
    samples, grouped = mcmc.get_samples(), mcmc.get_samples(group_by_chain=True)
    assert {k: v.shape for k, v in samples.items()} == {"m": (6, 2), "scale": (6, 2)}
    assert {k: v.shape for k, v in grouped.items()} == {"m": (1, 6, 2), "scale": (1, 6, 2)}
    assert bool((samples["scale"] > 0).all())
    assert mcmc.get_samples(num_samples=9)["m"].shape == (9, 2)
    diagnostics = mcmc.diagnostics()
    assert {"m", "scale", "divergences", "acceptance rate"} <= set(diagnostics)
    assert diagnostics["m"]["n_eff"].shape == (2,)
    assert set(diagnostics["acceptance rate"]) == {"chain 0"}
    mcmc.summary()
    assert "m[0]" in capsys.readouterr().out


@pytest.mark.parametrize("kernel", KERNELS, ids=names)
def test_saved_parameters(kernel):
    assert set(drive(kernel(model), Y, save_params=["m"]).get_samples()) == {"m"}


@pytest.mark.parametrize("kernel", [pyro.infer.HMC, HMC], ids=names)
def test_two_chains(kernel, monkeypatch):
    monkeypatch.setattr(pyro.infer.mcmc.api.mp, "cpu_count", lambda: 4)
    initial = {"m": torch.zeros(2, 2), "scale": torch.zeros(2, 2)}
    mcmc = drive(kernel(model), Y, num_chains=2, mp_context="fork", initial_params=initial)
    grouped = mcmc.get_samples(group_by_chain=True)
    assert grouped["m"].shape == (2, 6, 2)
    assert not torch.equal(grouped["m"][0], grouped["m"][1])
    assert set(mcmc.diagnostics()["divergences"]) == {"chain 0", "chain 1"}


@pytest.mark.parametrize("kernel", OURS, ids=names)
def test_initial_values_of_the_wrong_shape(kernel):
    for initial, message in (
        ({"m": torch.zeros(3), "scale": torch.zeros(2)}, r"initial_params\['m'\] must have shape"),
        ({"m": torch.zeros(2)}, r"for the latents \['m', 'scale'\], got \['m'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            drive(kernel(model), Y, initial_params=initial)


@pytest.mark.parametrize("kernel", [pyro.infer.HMC, HMC, RandomWalk], ids=names)
@pytest.mark.parametrize("observed", [True, False], ids=["all observed", "no site"])
def test_a_model_without_latents_has_empty_draws(kernel, observed):
    def empty():
        if observed:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))

    calls = []
    mcmc = drive(kernel(empty), hook_fn=lambda k, params, stage, i: calls.append(dict(params)))
    assert mcmc.get_samples() == {}
    assert calls == [{}] * 10
    with pytest.raises(ValueError, match="no latent site"):
        Chains(HMC(empty), 5, 5, progress=False).run()


@pytest.mark.parametrize("kernel", KERNELS, ids=names)
def test_subsampled_plates_are_refused(kernel):
    def part(size):
        with pyro.plate("rows", 10, subsample_size=size):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert drive(kernel(part), 10).get_samples()["z"].shape == (6, 10)
    with pytest.raises(RuntimeError, match="subsample"):
        drive(kernel(part), 5)


@pytest.mark.uses_param_store
@pytest.mark.parametrize("kernel", [pyro.infer.HMC, HMC], ids=names)
def test_a_model_with_a_parameter(kernel):
    def trained():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0))

    assert drive(kernel(trained)).get_samples()["z"].shape == (6,)


@pytest.mark.parametrize("kernel", [pyro.infer.HMC, HMC], ids=names)
def test_a_kernel_called_by_hand(kernel):
    """setup, then one call a transition, and a potential that is linear: there is nothing for it to settle at."""
    pyro.set_rng_seed(0)
    chain = kernel(potential_fn=lambda params: params["z"])
    chain.initial_params = {"z": torch.tensor(0.0)}
    chain.setup(3)
    params = chain.initial_params
    for _ in range(6):
        chain.clear_cache()
        params = chain(params)
    assert params["z"].shape == ()


@pytest.mark.parametrize("kernel", [pyro.infer.HMC, HMC], ids=names)
def test_data_beside_a_potential_and_predictive_draws(kernel):
    """Pyro's tutorials pass data to a run whose potential has them in it already."""
    initial, potential, transforms, _ = initialize_model(model, model_args=(Y,))
    mcmc = drive(kernel(potential_fn=potential, transforms=transforms), Y, initial_params=initial)
    drawn = Predictive(model, mcmc.get_samples())(Y)
    assert drawn["y"].shape == (6, 3, 2)
    assert bool((mcmc.get_samples()["scale"] > 0).all())


def test_data_beside_a_potential_are_refused_in_our_driver():
    with pytest.raises(ValueError, match="takes no data"):
        Chains(HMC(potential_fn=lambda u: u["z"]), 5, 5, progress=False).run(Y, initial_params={"z": torch.zeros(4)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", OURS, ids=names)
def test_draws_have_the_sites_type(kernel, dtype):
    def typed():
        pyro.sample("z", dist.Gamma(torch.tensor(2.0, dtype=dtype), 1.0))

    assert drive(kernel(typed)).get_samples()["z"].dtype == dtype


@pytest.mark.parametrize("op", [torch.inverse, torch.linalg.cholesky], ids=["inverse", "cholesky"])
@pytest.mark.parametrize("jit", [False, True], ids=["plain", "TorchScript"])
def test_a_singular_matrix_is_a_rejection(op, jit):
    def potential(params):
        return op(params["cov"]).sum()

    start = {"cov": torch.eye(3)}
    fn = torch.jit.trace(potential, (start,)) if jit else potential
    kernel = HMC(potential_fn=fn, adapt_step_size=False, num_steps=10, step_size=1e-20)
    kernel.initial_params = start
    kernel.setup(warmup_steps=0)
    for params in (start, {"cov": torch.ones(3, 3)}, start):
        moved = kernel(params)
        torch.testing.assert_close(moved["cov"], params["cov"])


def test_chains_in_turn_share_nothing(monkeypatch):
    """Each chain's draws follow its seed alone, whatever chain came before it on the same kernel."""
    monkeypatch.setattr(pyro.infer.mcmc.api.mp, "cpu_count", lambda: 1)

    def chains(order):
        class Seeded(HMC):
            def setup(self, warmup_steps, *args, **kwargs):
                pyro.set_rng_seed(order[self.__dict__.setdefault("_chain", 0)])
                self._chain += 1
                super().setup(warmup_steps, *args, **kwargs)

        kernel = Seeded(model)
        sampler = pyro.infer.mcmc.api._UnarySampler(kernel, 4, 4, 2, disable_progbar=True)
        found = {0: [], 1: []}
        for value, chain in sampler.run(Y):
            found[chain].append(value)
        draws = ([v for v in found[c] if isinstance(v, torch.Tensor) and v.numel() == 4] for c in (0, 1))
        return [torch.stack(values) for values in draws]

    first, second = chains([3, 8]), chains([8, 3])
    assert first[0].shape == (4, 4)
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(first[0], second[1])
    torch.testing.assert_close(first[1], second[0])
