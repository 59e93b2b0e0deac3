"""NeuTra and FlowMC: stationary under any frozen flow, exact after training, and what they refuse."""

from __future__ import annotations

import math
import pickle
from functools import partial

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.distributions.transforms import ElementwiseAffine
from pyro_dgm.infer.mcmc import HMC, MALA, MCMC, ChEES, FlowMC, Gibbs, Langevin, NeuTra, ParallelTempering, RandomWalk
from pyro_dgm.infer.mcmc.flow_training import FlowTraining
from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential
from pyro_dgm.infer.mcmc.potentials.transported import TransportedPotential
from tests.infer.mcmc.flows import Shear
from tests.infer.mcmc.moons import exact, moons
from tests.infer.mcmc.targets import EXACT_MOMENTS, correlated, exact_draws, moments, walk
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors


def affine_and_shear(sign=1.0):
    """A flow that fits the correlated Gaussian badly, with a log-determinant that varies."""
    return Shear(2, slope=0.4, sign=sign).double()


def in_errors(x, exact):
    """Distance of the mean over chains from the exact one, in standard errors; chains are independent."""
    return ((x.mean(0) - exact).abs() / (x.std(0) / math.sqrt(len(x)))).max()


KERNELS = {
    "neutra-hmc": lambda flow: NeuTra(HMC(potential_fn=correlated, step_size=0.5, num_steps=3), flow=flow, train=False),
    "neutra-mala": lambda flow: NeuTra(MALA(potential_fn=correlated, step_size=0.7), flow=flow, train=False),
    "neutra-chees": lambda flow: NeuTra(ChEES(potential_fn=correlated, step_size=0.5), flow=flow, train=False),
    "flowmc-mala": lambda flow: FlowMC(potential_fn=correlated, flow=flow, train=False, step_size=0.5),
    "flowmc-hmc": lambda flow: FlowMC(HMC(potential_fn=correlated, step_size=0.1, num_steps=1), flow=flow, train=False),
    "flowmc-walk": lambda flow: FlowMC(
        RandomWalk(potential_fn=correlated, step_size=0.1), flow=flow, train=False, num_proposals=3
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_stationary_under_a_frozen_flow(name):
    """Chains that begin at exact draws are exact draws after any number of transitions."""
    state, seen = walk(KERNELS[name](affine_and_shear()), {"x": exact_draws(8000, 3)}, 25, after=lambda s, i: i)
    assert float(torch.stack([i.accepted.double() for i in seen]).mean()) > 0.2
    torch.testing.assert_close(state.potential, correlated(state.position))
    assert in_errors(moments(state.position["x"].unsqueeze(1))[:, 0], EXACT_MOMENTS) < SIGMAS


@pytest.mark.parametrize("name", ["neutra-hmc", "flowmc-mala", "flowmc-walk"])
def test_the_check_of_stationarity_sees_a_wrong_log_determinant(name):
    state, _ = walk(KERNELS[name](affine_and_shear(sign=-1.0)), {"x": exact_draws(8000, 3)}, 25)
    assert in_errors(moments(state.position["x"].unsqueeze(1))[:, 0], EXACT_MOMENTS) > 2 * SIGMAS


def test_transported_potential_is_the_pulled_back_density():
    """Value and gradient against autograd through U(f(z)) - T log|det J|, and constrained draws with their Jacobian."""
    flow, temperature = affine_and_shear(), 2.0
    base = FunctionPotential(correlated)
    pulled = TransportedPotential(base, flow, temperature)
    z = exact_draws(6, 1)

    def by_hand(z):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow(v)))(z)
        return correlated({"x": flow(z)}) - temperature * torch.linalg.slogdet(jacobian)[1]

    value, gradient = pulled({"x": z})
    torch.testing.assert_close(value, by_hand(z).detach())
    leaf = z.clone().requires_grad_()
    (exact,) = torch.autograd.grad(by_hand(leaf).sum(), leaf)
    torch.testing.assert_close(gradient["x"], exact)
    u, _ = pulled.push({"x": z})
    known = pulled.from_base({"x": z}, *base(u))
    torch.testing.assert_close(known[0], value)
    torch.testing.assert_close(known[1]["x"], exact)
    back, _ = pulled.pull(u)
    torch.testing.assert_close(back["x"], z)
    values, log_det = pulled.constrain({"x": z})
    torch.testing.assert_close(values["x"], u["x"])
    torch.testing.assert_close(value + log_det, correlated(u))  # what `lp` is made of


def funnel(u):
    """Neal's: the first of ten is the logarithm of the others' variance."""
    v, x = u["x"][..., 0], u["x"][..., 1:]
    return v.square() / 18 + 0.5 * x.square().sum(-1) * (-v).exp() + 0.5 * x.shape[-1] * v


@pytest.mark.slow
def test_neutra_samples_a_funnel_that_hmc_does_not():
    start = {"x": torch.randn(16, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    ess = {}
    for name, kernel in {
        "hmc": HMC(potential_fn=funnel),
        "neutra": NeuTra(potential_fn=funnel, flow=Shear, train_steps=1000, learning_rate=0.03),
    }.items():
        mcmc = MCMC(kernel, 200, 200, 16, seed=0, progress=False)
        mcmc.run(initial_params=start)
        v = mcmc.get_samples(group_by_chain=True)["x"][..., :1]
        ess[name] = float(arviz.ess(v[..., 0].numpy()))
    assert not mcmc.posterior.sample_stats["diverging"].any()
    assert in_standard_errors(torch.cat([v, v.square()], -1), torch.tensor([0.0, 9.0])).max() < SIGMAS
    assert ess["neutra"] > 1000 > 10 * ess["hmc"], ess


@pytest.mark.slow
def test_neutra_samples_a_funnel_in_a_hundred_dimensions():
    """With default settings: more than 1 000 effective draws and no divergence; plain HMC has neither."""
    start = {"x": torch.randn(32, 100, generator=torch.Generator().manual_seed(0))}
    ess, diverging = {}, {}
    for kernel in (HMC(potential_fn=funnel), NeuTra(potential_fn=funnel)):
        mcmc = MCMC(kernel, 200, 400, 32, seed=0, progress=False)
        mcmc.run(initial_params=start)
        v = mcmc.get_samples(group_by_chain=True)["x"][..., :1]
        ess[kernel.name] = float(arviz.ess(v[..., 0].numpy()))
        diverging[kernel.name] = int(mcmc.posterior.sample_stats["diverging"].sum())
    assert diverging["neutra"] == 0
    assert ess["neutra"] > 1000 > 10 * ess["hmc"], ess
    assert in_standard_errors(torch.cat([v, v.square()], -1), torch.tensor([0.0, 9.0])).max() < SIGMAS


def two_modes(u):
    """Normals of standard deviation 0.5 at -5 and 5, of weights 0.3 and 0.7."""
    d = torch.stack([(u["x"] + 5.0).square().sum(-1), (u["x"] - 5.0).square().sum(-1)], -1) / 0.5
    return -torch.logsumexp(torch.tensor([0.3, 0.7], dtype=d.dtype).log() - d, -1)


def share(mcmc, test):
    """Mean of a statement about draws, and its standard error from the spread over chains."""
    true = test(mcmc.get_samples(group_by_chain=True)["x"]).double().mean(1)
    return float(true.mean()), float(true.std() / len(true) ** 0.5)


@pytest.mark.slow
def test_flowmc_finds_the_weights_of_two_modes_that_mala_does_not():
    start = {"x": 5.0 * torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64).repeat(16, 1)}
    found = {}
    for kernel in (FlowMC(potential_fn=two_modes, train_steps=300, learning_rate=0.01), MALA(potential_fn=two_modes)):
        mcmc = MCMC(kernel, 200, 150, 32, seed=0, progress=False)
        mcmc.run(initial_params=start)
        found[kernel.name] = share(mcmc, lambda x: x[..., 0] > 0)
    mean, error = found["flowmc"]
    assert error < 0.03
    assert abs(mean - 0.7) < SIGMAS * error
    assert abs(found["mala"][0] - 0.5) < 0.06  # chains stay in the mode where they began


@pytest.mark.slow
def test_flowmc_weighs_two_moons_in_five_dimensions():
    """4 000 draws."""
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    mcmc = MCMC(FlowMC(potential_fn=moons), 100, 400, 40, seed=0, progress=False)
    mcmc.run(initial_params={"x": 2.0 * x / x.norm(dim=-1, keepdim=True)})
    mean, error = share(mcmc, lambda x: x[..., 0] > 0)
    right, radius = exact(5)
    assert error < 0.03
    assert abs(mean - right) < SIGMAS * error
    norms = mcmc.get_samples(group_by_chain=True)["x"].norm(dim=-1)
    assert in_standard_errors(norms, torch.tensor(radius)).max() < SIGMAS


class Kinked(ElementwiseAffine):
    """Finite values, and a gradient of the log-determinant that is not a number."""

    def _forward(self, x, context):
        y, log_det = super()._forward(x, context)
        return y, log_det + (self.bias.sum() * 0).sqrt()


@pytest.mark.parametrize("flow, potential", [
    (Kinked, lambda u: u["x"].square().sum(-1)),
    (ElementwiseAffine, lambda u: u["x"].square().sum(-1) + torch.inf),
])  # fmt: skip
def test_steps_that_tell_nothing_are_left_out_and_said(flow, potential):
    training = FlowTraining(flow(2), torch.Generator().manual_seed(0), 10, 0.1, 8)
    before = [p.clone() for p in training.flow.parameters()]
    with pytest.warns(RuntimeWarning, match="10 of 10 steps of the flow's training had no finite loss or gradient"):
        training.fit_to_potential(10, FunctionPotential(potential), {"x": torch.zeros(3, 2)}, 1.0)
    assert all(torch.equal(p, old) for p, old in zip(training.flow.parameters(), before, strict=True))
    assert math.isnan(training.loss)


def test_training_by_likelihood_whitens_and_fits():
    """Draws from a sheared normal give the shear back, by maximum likelihood."""
    g = torch.Generator().manual_seed(0)
    training = FlowTraining(Shear(2).double(), g, 400, 0.03, 512)
    truth = Shear(2, slope=0.8).double()
    for _ in range(20):
        z = torch.randn(500, 2, generator=g, dtype=torch.float64)
        training.observe({"x": 3.0 + 2.0 * truth(z).detach()})
    assert len(training.draws) == 10  # the later half
    training.whiten()
    rows = torch.cat(training.draws)
    torch.testing.assert_close(training.whitening.bias[:2], rows.mean(0), atol=1e-6, rtol=0)
    flow = training.fit_to_draws(400)
    assert not any(p.requires_grad for p in flow.parameters())
    assert abs(float(training.flow.parts[0].slope) - 0.8) < 0.05
    entropy = math.log(2 * math.pi * math.e) + 2 * math.log(2.0)
    assert abs(training.loss - entropy) < 0.15


@pytest.mark.slow
def test_a_model_with_several_latents_has_exact_moments():
    """Constrained latents of several shapes go through the flow as one vector, and come back right."""

    def model():
        pyro.sample("rate", dist.Gamma(torch.tensor(3.0, dtype=torch.float64), 2.0))
        with pyro.plate("items", 2):
            pyro.sample("p", dist.Beta(torch.tensor(2.0, dtype=torch.float64), 3.0))

    for kernel in (NeuTra(model, flow=Shear, train_steps=100), FlowMC(model, flow=Shear, train_steps=200)):
        mcmc = MCMC(kernel, 400, 200, 32, seed=0, progress=False)
        mcmc.run()
        draws = mcmc.get_samples(group_by_chain=True)
        assert draws["p"].shape == (32, 400, 2)
        x = torch.cat([draws["rate"].unsqueeze(-1), draws["rate"].square().unsqueeze(-1), draws["p"]], -1)
        assert in_standard_errors(x, torch.tensor([1.5, 3.0, 0.4, 0.4])).max() < SIGMAS
        lp = dist.Gamma(3.0, 2.0).log_prob(draws["rate"]) + dist.Beta(2.0, 3.0).log_prob(draws["p"]).sum(-1)
        torch.testing.assert_close(mcmc.posterior.sample_stats["lp"], lp, atol=1e-6, rtol=1e-6)


def test_statistics_and_no_training_in_a_short_warm_up():
    start = {"x": exact_draws(8, 0)}
    mcmc = MCMC(FlowMC(potential_fn=correlated, flow=ElementwiseAffine), 30, 40, 8, seed=0, progress=False)
    mcmc.run(initial_params=start)
    assert len(mcmc.posterior.attrs["global_acceptance"]) == 8
    assert 0.2 < sum(mcmc.posterior.attrs["global_acceptance"]) / 8 <= 1.0
    assert math.isfinite(mcmc.posterior.attrs["flow_loss"])
    for make, plain in ((FlowMC, MALA), (NeuTra, partial(HMC, target_accept_prob=0.9))):
        draws = []
        for kernel in (make(potential_fn=correlated, flow=ElementwiseAffine), plain(potential_fn=correlated)):
            mcmc = MCMC(kernel, 10, 10, 8, seed=0, progress=False)
            mcmc.run(initial_params=start)
            draws.append(mcmc.get_samples()["x"])
        assert torch.equal(*draws)  # nothing is learnt: the inner kernel alone


def test_the_same_seed_gives_the_same_draws_recorded_or_not():
    start = {"x": exact_draws(8, 0)}
    before = torch.get_rng_state()
    for make in (FlowMC, NeuTra):
        draws = []
        for compile in ("auto", False):
            kernel = make(potential_fn=correlated, flow=Shear, train_steps=30, compile=compile)
            mcmc = MCMC(kernel, 60, 40, 8, seed=5, progress=False)
            mcmc.run(initial_params=start)
            draws.append(mcmc.get_samples()["x"])
        torch.testing.assert_close(*draws)
    assert torch.equal(before, torch.get_rng_state())


def test_given_flows_are_copied_and_a_chain_may_be_moved_from_outside():
    flow = Shear(2, slope=0.1).double()
    kernel = NeuTra(potential_fn=correlated, flow=flow, train_steps=20)
    kernel.initial_params = {"x": exact_draws(1, 0)[0]}
    kernel.setup(20)
    params = kernel.initial_params
    for _ in range(20):
        params = kernel.sample(params)
    assert float(flow.slope[0].detach()) == pytest.approx(0.1)  # the user's own is as it was
    assert flow.slope.requires_grad
    there = {"x": torch.tensor([2.0, -1.0], dtype=torch.float64)}
    kernel.sample(there)
    state = kernel.relocated(kernel._run.state, {k: v[None] for k, v in there.items()})
    torch.testing.assert_close(state.flow(state.base["x"]), there["x"][None])
    torch.testing.assert_close(state.potential, correlated({"x": there["x"][None]}))
    assert isinstance(pickle.loads(pickle.dumps(kernel)), NeuTra)


def test_what_they_refuse():
    start = {"x": exact_draws(4, 0)}

    def run(kernel):
        MCMC(kernel, 20, 20, 4, seed=0, progress=False).run(initial_params=start)

    with pytest.raises(ValueError, match=r"flow must be over the 2 elements .* \(3,\)"):
        run(FlowMC(potential_fn=correlated, flow=ElementwiseAffine(3)))
    with pytest.raises(ValueError, match="context_dim=4"):
        run(NeuTra(potential_fn=correlated, flow=lambda dim: ElementwiseAffine(dim, context_dim=4)))
    with pytest.raises(TypeError, match=r"flow\(2\) must give a pyro_dgm Bijection, got int"):
        run(NeuTra(potential_fn=correlated, flow=lambda dim: dim))
    with pytest.raises(TypeError, match="flow must be a pyro_dgm Bijection.*got int"):
        FlowMC(potential_fn=correlated, flow=3)
    with pytest.raises(ValueError, match="train=False needs a flow"):
        FlowMC(potential_fn=correlated, train=False)
    with pytest.raises(ValueError, match="takes gradients, got RandomWalk"):
        NeuTra(RandomWalk(potential_fn=correlated))
    with pytest.raises(ValueError, match="by their density alone, got ParallelTempering"):
        FlowMC(ParallelTempering(potential_fn=correlated))
    with pytest.raises(ValueError, match="by their density alone, got Gibbs"):
        FlowMC(Gibbs({"x": lambda state, generator: state["x"]}))
    with pytest.raises(ValueError, match="num_proposals"):
        FlowMC(potential_fn=correlated, num_proposals=0)
    with pytest.raises(ValueError, match="settings of the inner kernel"):
        FlowMC(MALA(potential_fn=correlated), step_size=0.1)
    with pytest.raises(TypeError, match="kernel must be"):
        NeuTra(kernel=3, potential_fn=correlated)


def test_a_biased_kernel_stays_one():
    assert not FlowMC(Langevin(potential_fn=correlated, step_size=0.1)).adjusted
    assert pyro_dgm.infer.mcmc.KERNELS["flowmc"] is FlowMC
