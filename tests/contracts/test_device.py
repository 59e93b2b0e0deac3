"""One contract over everything that computes: results are where the data are, and are right there.

On the CPU every test runs inside :class:`~tests.devices.DevicesAreGiven`, which makes what the library leaves to the
default device unusable; where there is a GPU the same tests run on it (``make test-gpu``).
"""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_dgm
from pyro_dgm import analysis
from pyro_dgm.distributions import FlowDistribution, FlowReparam
from pyro_dgm.distributions.transforms import make_flow
from pyro_dgm.guides import FlowGuide
from pyro_dgm.infer import ELBO, IWAE, OBJECTIVES, CapturedELBO, DReG
from pyro_dgm.infer.mcmc import DISCRETE_KERNELS, HMC, KERNELS, MCMC, Gibbs
from pyro_dgm.infer.objectives import energies
from pyro_dgm.infer.smc import AIS, SMCSampler, bdmc
from pyro_dgm.models import DBM, EBM, RBM, VAE, BoltzmannMachine, FlowModel, LatentEBM, LinearGaussian
from tests.devices import DevicesAreGiven, devices


@pytest.fixture(params=devices())
def device(request):
    """Where the test runs; on the CPU the library must say where each of its tensors is to be."""
    if request.param == "cuda":
        return torch.device("cuda", 0)
    request.getfixturevalue("given_devices")
    return torch.device("cpu")


@pytest.fixture
def given_devices():
    with DevicesAreGiven() as mode:
        yield
    assert not mode.places, f"tensors made without device=: {list(mode.places)}"


def linear_gaussian(device, n=6):
    m = LinearGaussian(4, 2).double().to(device)
    return m, torch.randn(n, 4, dtype=torch.float64).to(device)


def regression(x: Tensor, y: Tensor) -> None:
    """A user's model: constrained and unconstrained latents, a plate, and a discrete latent to be summed out."""
    zero = x.new_zeros(())
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(zero, 0.5))
    share = pyro.sample("share", dist.Dirichlet(x.new_ones(2)))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(share), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(x @ w + k, scale), obs=y)


def is_there(result, device):
    tensors = [result] if isinstance(result, Tensor) else list(result)
    assert tensors
    for t in tensors:
        assert t.device == device
        assert torch.isfinite(t).all()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_objectives(name, device):
    m, x = linear_gaussian(device)
    objective = OBJECTIVES[name](num_particles=3)
    is_there(objective.bound(m.model, m.guide, x), device)
    objective(m.model, m.guide)(x).backward()
    is_there([p.grad for p in m.parameters()], device)
    assert math.isfinite(objective.loss_and_grads(m.model, m.guide, x))
    captured = CapturedELBO(OBJECTIVES[name](num_particles=3), backend="aten")
    captured(m.model, m.guide)(x).backward()
    captured(m.model, m.guide)(x.flip(0)).backward()
    assert captured.status(m.model, m.guide).startswith("captured")
    is_there([p.grad for p in m.parameters()], device)


def test_bounds_and_posterior_are_exact(device):
    m = LinearGaussian(4, 2, guide_covariance="full").double().to(device)
    x = torch.randn(6, 4, dtype=torch.float64).to(device)
    m.set_guide_to_posterior()
    torch.testing.assert_close(IWAE(3).bound(m.model, m.guide, x), m.log_marginal(x))
    found = analysis.log_likelihood(m, x, num_particles=50, seed=0)
    assert found.mean == pytest.approx(m.log_marginal(x).mean().item())
    draws = pyro_dgm.sample_posterior(
        m, x, method="hmc", num_samples=200, num_chains=32, warmup_steps=100, seed=0, progress=False
    )["z"]
    exact = m.posterior(x)
    z = (draws.mean((0, 1)) - exact.mean) / (exact.variance / 2000).sqrt()  # HMC: at least 2 000 of 6 400 count
    assert z.abs().max() < 5
    torch.testing.assert_close(draws.std((0, 1)), exact.stddev, rtol=0.1, atol=0)


@pytest.mark.parametrize("cls", [energies.ContrastiveDivergence, energies.PersistentCD], ids=["cd", "pcd"])
@pytest.mark.parametrize("family", [RBM, DBM, BoltzmannMachine], ids=lambda f: f.__name__)
def test_energies_of_binary_units(cls, family, device):
    m = {RBM: lambda: RBM(6, 3), DBM: lambda: DBM(6, (4, 3)), BoltzmannMachine: lambda: BoltzmannMachine(6)}[family]()
    m = m.to(device)
    x = torch.randint(2, (5, 6)).float().to(device)
    cls()(m.model, m.guide)(x).backward()
    is_there([p.grad for p in m.parameters()], device)
    exact, annealed = m.log_normalizer("exact"), m.log_normalizer("ais", num_temperatures=200, num_chains=50, seed=0)
    assert float(annealed) == pytest.approx(float(exact), abs=max(0.05, 5 * float(annealed.standard_error)))


@pytest.mark.parametrize(
    "objective",
    [
        energies.ContrastiveDivergence(), energies.PersistentCD(), energies.DenoisingScoreMatching([0.1, 0.3]),
        energies.NoiseContrastive(), energies.ScoreMatching(), energies.SlicedScoreMatching(),
    ],
    ids=lambda o: type(o).__name__,
)  # fmt: skip
def test_energies_of_a_network(objective, device):
    m = EBM((3,), hidden=(8,)).to(device)
    x = torch.randn(5, 3).to(device)
    run = pyro_dgm.fit(m, x, objective=copy.deepcopy(objective), epochs=2, device=device, seed=0, progress=False)
    assert all(math.isfinite(v) for v in run.history["train"])
    is_there(list(m.parameters()), device)
    is_there(m.distribution().sample((4,)), device)


def test_latent_energy(device):
    m = LatentEBM((5,), 2, hidden=(8,), prior_hidden=(8,), num_steps=3).to(device)
    x = torch.randn(4, 5).to(device)
    objective = energies.ShortRunML(num_steps=2, num_prior_steps=2)
    pyro_dgm.fit(m, x, objective=objective, epochs=2, device=device, seed=0, progress=False)
    is_there(list(m.parameters()), device)


@pytest.mark.parametrize("name", list(KERNELS))
def test_kernels_on_a_model(name, device):
    x, y = torch.randn(12, 3).to(device), torch.randn(12).to(device)
    post = pyro_dgm.sample_posterior(
        regression, x, y, method=name, num_samples=40, num_chains=3, warmup_steps=60, seed=0, progress=False
    )
    assert set(post.samples) == {"w", "scale", "share"}
    is_there(post.samples.values(), device)
    is_there([v.double() for v in post.sample_stats.values()], device)


def test_dense_mass_and_compiled_transitions_of_a_potential(device):
    def potential(u: dict[str, Tensor]) -> Tensor:
        return 0.5 * u["a"].square().sum(-1)

    for kernel in (HMC(potential_fn=potential, dense_mass=True), HMC(potential_fn=potential)):
        mcmc = MCMC(kernel, 60, 60, 5, seed=0, progress=False)
        mcmc.run(initial_params={"a": torch.randn(5, 3).to(device)})
        is_there(mcmc.get_samples()["a"], device)


@pytest.mark.parametrize("name", list(DISCRETE_KERNELS))
def test_kernels_of_discrete_states(name, device):
    weight = torch.randn(3, 2).to(device)

    def potential(s: dict[str, Tensor]) -> Tensor:
        return -torch.einsum("ci,ij,cj->c", s["v"].float(), weight, s["h"].float())

    updates = {
        "h": lambda s, u: (u < torch.sigmoid(s["v"].float() @ weight)).to(s["h"].dtype),
        "v": lambda s, u: (u < torch.sigmoid(s["h"].float() @ weight.T)).to(s["v"].dtype),
    }
    kind = DISCRETE_KERNELS[name]
    kernel = Gibbs(updates, potential_fn=potential) if kind is Gibbs else kind(potential_fn=potential)
    mcmc = MCMC(kernel, 40, 20, 4, seed=0, progress=False)
    start = {"v": torch.randint(2, (4, 3)).to(device), "h": torch.randint(2, (4, 2)).to(device)}
    mcmc.run(initial_params=start)
    assert all(v.device == device for v in mcmc.get_samples().values())


@pytest.mark.parametrize("dequantize", [None, "uniform", "variational"])
def test_flows(dequantize, device):
    m = FlowModel((3,), num_layers=2, hidden=(8,), dequantize=dequantize, num_levels=8, num_classes=2).to(device)
    x, y = torch.randint(8, (6, 3)).float().to(device), torch.randint(2, (6,)).to(device)
    m.initialize(x)
    is_there(ELBO().bound(m.model, m.guide, x, y), device)
    captured = CapturedELBO(IWAE(3), backend="aten")
    captured(m.model, m.guide)(x, y).backward()
    captured(m.model, m.guide)(x.flip(0), y).backward()
    assert captured.status(m.model, m.guide).startswith("captured")
    is_there([p.grad for p in m.parameters()], device)
    is_there([m.sample(4, y[:4], seed=0), m.bits_per_dim(x, y, num_particles=2, seed=0)], device)


@pytest.mark.parametrize("transform", ["affine_autoregressive", "spline_coupling"])
def test_flow_guides(transform, device):
    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w[..., 0], 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = torch.randn(7).to(device)
    guide = FlowGuide(model, transform, num_layers=1, options={"hidden": (8,)})
    is_there(guide(x).values(), device)
    for objective in (ELBO(2), IWAE(3), DReG(3)):
        captured = CapturedELBO(objective, backend="aten")
        captured(model, guide)(x).backward()
        captured(model, guide)(x.flip(0)).backward()
        assert captured.status(model, guide).startswith("captured")
    is_there([p.grad for p in guide.parameters()], device)


def test_a_flow_prior_in_base_space(device):
    flow = make_flow("spline_coupling", 2, num_layers=1, hidden=(4,), num_bins=4).to(device).requires_grad_(False)

    def model(y):
        w = pyro.sample("w", FlowDistribution(flow))
        pyro.sample("y", dist.Normal(w.sum(-1), 1.0), obs=y)

    y = torch.ones(()).to(device)
    for fn, site in ((model, "w"), (poutine.reparam(model, {"w": FlowReparam()}), "w_base")):
        post = pyro_dgm.sample_posterior(
            fn, y, method="hmc", num_samples=20, num_chains=3, warmup_steps=20, seed=0, progress=False
        )
        is_there(post[site], device)


def test_normalisers(device):
    mean = torch.ones(2).to(device)
    initial = dist.Normal(torch.zeros(2).to(device), 2.0).to_event(1)
    target = dist.Normal(mean, 0.5).to_event(1)  # log Z = 0
    ais = AIS(initial, target, num_temperatures=50)
    assert abs(float(ais.forward(num_chains=100, seed=0))) < 0.3
    assert abs(float(bdmc(ais, target.sample((100,)), seed=0).lower)) < 0.3
    result = SMCSampler(initial, lambda x: target.log_prob(x)).run(num_particles=200, seed=0)
    assert abs(float(result)) < 0.3
    is_there(result.samples, device)


def test_annealed_likelihoods(device):
    m, x = linear_gaussian(device, 3)
    for method in ("ais", "bdmc"):
        found = analysis.log_likelihood(m, x, method=method, num_temperatures=50, num_chains=8, seed=0)
        assert "nan" not in repr(found)


@pytest.mark.parametrize(
    "depth", [False, "graph", *(pytest.param(d, marks=pytest.mark.slow) for d in ("objective", "step", "block"))]
)
def test_fit_checkpoints_and_resume(depth, device, tmp_path):
    def go(epochs, resume=None):
        torch.manual_seed(0)
        m = VAE((3, 3), 2, hidden=(6,))
        x = torch.rand(40, 3, 3, generator=torch.Generator().manual_seed(1))
        run = pyro_dgm.fit(
            m, x, objective=ELBO(2), epochs=epochs, batch_size=16, validation=x[:8], transform=torch.bernoulli,
            early_stopping=50, clip_norm=10.0, seed=0, device=device, compile=depth, progress=False,
            checkpoint_dir=tmp_path, resume=resume,
        )  # fmt: skip
        is_there(list(m.parameters()), device)
        return run

    go(2)
    resumed = go(4, True)
    assert resumed.epochs == 4
    assert all(math.isfinite(v) for v in resumed.history["train"] + resumed.history["validation"])


def test_fit_moves_a_program_to_the_device_of_choice(device):
    m = VAE((3, 3), 2, hidden=(6,))
    pyro_dgm.fit(m, torch.rand(20, 3, 3).round(), epochs=1, device=device, seed=0, progress=False)
    is_there(list(m.parameters()), device)


def test_analysis(device):
    m, x = linear_gaussian(device)
    repr(pyro_dgm.compare_elbos(m, x, [ELBO(), IWAE(3)], num_replicates=4, reference_particles=20, seed=0))
    repr(analysis.elbo_surgery(m, x, seed=0))
    repr(analysis.active_units(m, x))
    repr(analysis.mutual_information(m, x))
    for method in ("guide", "mala"):
        post = pyro_dgm.sample_posterior(
            m, x, method=method, num_samples=10, num_chains=2, warmup_steps=10, seed=0, progress=False
        )
        is_there(post["z"], device)
        idata = pyro_dgm.to_arviz(post, posterior_predictive=True, prior=5)
        groups = analysis.arviz_adapter.group_names(idata)
        assert {"posterior", "log_likelihood", "observed_data", "prior"} <= set(groups)
