"""Flows of zuko as Pyro distributions: densities, supports, contexts, no cache, and every engine on a site."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch.distributions import Distribution

from pyro_dgm.infer.mcmc import HMC, MCMC
from pyro_dgm.interop.zuko import ZukoBijection, from_zuko, import_zuko
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors

if importlib.util.find_spec("zuko") is None:
    pytest.skip("zuko is not installed", allow_module_level=True)
zuko = import_zuko()

#: flows, with the tolerance of their inverses in float64
FLOWS = {
    "MAF": (lambda **k: zuko.flows.MAF(3, transforms=2, hidden_features=(16,), **k), 1e-8),
    "NSF": (lambda **k: zuko.flows.NSF(3, transforms=2, hidden_features=(16,), **k), 1e-8),
    "RealNVP": (lambda **k: zuko.flows.RealNVP(3, transforms=2, hidden_features=(16,), **k), 1e-8),
    "NCSF": (lambda **k: zuko.flows.NCSF(3, transforms=2, hidden_features=(16,), **k), 1e-8),
    "BPF": (lambda **k: zuko.flows.BPF(3, transforms=1, hidden_features=(16,), **k), 1e-5),
}
every = pytest.mark.parametrize("name", FLOWS)


def make(name, context=0):
    torch.manual_seed(0)
    flow = FLOWS[name][0](**({"context": context} if context else {})).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return flow


def test_the_import_leaves_validation_on():
    code = (
        "from torch.distributions import Distribution as D; from pyro_dgm.interop.zuko import import_zuko;"
        "on = D._validate_args; import_zuko(); print(on, D._validate_args)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True"]


def test_validation_that_zuko_switched_off_comes_back_and_the_users_choice_stays():
    assert Distribution._validate_args
    try:
        Distribution.set_default_validate_args(False)  # what zuko's import does
        from_zuko(make("MAF"))
        assert Distribution._validate_args
    finally:
        Distribution.set_default_validate_args(True)
    with pyro.validation_enabled(False):
        from_zuko(make("MAF"))
        assert not Distribution._validate_args
    assert Distribution._validate_args


@every
def test_densities_and_draws_are_those_of_zuko(name):
    flow, tolerance = make(name), FLOWS[name][1]
    d = from_zuko(flow)
    assert (d.batch_shape, d.event_shape, d.has_rsample) == ((), (3,), True)
    x = d.sample((200,))
    assert not x.requires_grad and bool(d.support.check(x).all())
    torch.testing.assert_close(d.log_prob(x), flow().log_prob(x), rtol=0, atol=1e-10)
    value, log_prob = d.rsample_with_log_prob((200,))
    torch.testing.assert_close(d.log_prob(value), log_prob, rtol=0, atol=10 * tolerance)
    assert d.expand((4, 5)).rsample((2,)).shape == (2, 4, 5, 3)
    assert d.expand((4, 5)).log_prob(x[0]).shape == (4, 5)


@every
def test_bijection_is_inverse_with_the_jacobians_log_determinant(name):
    flow, tolerance = make(name, context=2), FLOWS[name][1]
    bijection = ZukoBijection(flow, context_dim=2)
    z, context = torch.rand(5, 1, 3, dtype=torch.float64) - 0.5, torch.randn(4, 2, dtype=torch.float64)
    x, log_det = bijection.forward_and_log_det(z, context)
    assert x.shape == (5, 4, 3) and log_det.shape == (5, 4)
    back, back_log_det = bijection.inverse_and_log_det(x, context)
    torch.testing.assert_close(back, z.expand(5, 4, 3), rtol=0, atol=tolerance)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=100 * tolerance)
    jacobian = torch.autograd.functional.jacobian(lambda v: bijection.inverse_and_log_det(v, context[1])[0], x[2, 1])
    torch.testing.assert_close(back_log_det[2, 1], torch.linalg.slogdet(jacobian)[1], rtol=1e-6, atol=1e-6)


def test_context_is_the_batch():
    flow = make("NSF", context=2)
    context = torch.randn(4, 2, dtype=torch.float64)
    d = from_zuko(flow, context)
    assert d.batch_shape == (4,)
    x = d.rsample((6,))
    assert x.shape == (6, 4, 3)
    one = torch.stack([flow(c).log_prob(x[:, i]) for i, c in enumerate(context)], 1)
    torch.testing.assert_close(d.log_prob(x), one)
    torch.testing.assert_close(d.expand((6, 4)).log_prob(x), one)
    other = from_zuko(flow, context + 1.0).log_prob(x)
    assert not torch.allclose(other, one)


def test_log_probability_follows_an_optimiser_step():
    """Of values that were drawn and scored before too: nothing is kept."""
    flow = make("MAF")
    d = from_zuko(flow)
    x = d.sample((5,))
    before = d.log_prob(x)
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.05)
    before.sum().neg().backward()
    optimizer.step()
    assert not torch.allclose(d.log_prob(x), before)
    torch.testing.assert_close(d.log_prob(x), flow().log_prob(x))
    assert sum(isinstance(v, dict) and bool(v) for v in vars(d).values()) == 0


def test_the_circular_flow_has_a_bounded_support():
    d = from_zuko(make("NCSF"))
    assert not bool(d.support.check(torch.full((3,), 4.0)).any())
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.full((3,), 4.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="support"):
        from_zuko(make("MAF")).log_prob(torch.full((3,), float("nan"), dtype=torch.float64))


def model_of(flow):
    """A flow prior, and one observation of the sum of its elements."""

    def model():
        z = pyro.sample("z", from_zuko(flow))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=torch.tensor(1.0, dtype=torch.float64))

    return model


def by_importance(flow):
    """The posterior's mean, its standard error, and the log evidence, by importance sampling from the prior."""
    torch.manual_seed(1)
    z = from_zuko(flow).sample((400_000,))
    log_weights = dist.Normal(z.sum(-1), 0.5).log_prob(torch.tensor(1.0, dtype=torch.float64))
    w = torch.softmax(log_weights, 0)
    mean = w @ z
    return mean, (w.square() @ (z - mean).square()).sqrt(), log_weights.logsumexp(0) - math.log(len(z))


@pytest.mark.parametrize("name, draws, chains", [("MAF", 400, 32), pytest.param("NSF", 60, 8, marks=pytest.mark.slow)])
def test_hmc_on_a_flow_prior(name, draws, chains):
    flow = make(name).requires_grad_(False)
    exact, error, _ = by_importance(flow)
    mcmc = MCMC(HMC(model_of(flow)), draws, 100, chains, seed=0, progress=False)
    mcmc.run()
    z = mcmc.get_samples(group_by_chain=True)["z"]
    distance = torch.as_tensor(in_standard_errors(z, exact))
    spread = (z.mean((0, 1)) - exact).abs() / distance  # the sampler's standard error
    assert ((z.mean((0, 1)) - exact).abs() / (spread.square() + error.square()).sqrt()).max() < SIGMAS


@pytest.mark.slow
def test_pyros_nuts_and_automatic_guides_take_the_site():
    flow = make("MAF").requires_grad_(False)
    exact, _, log_evidence = by_importance(flow)
    pyro.set_rng_seed(0)
    nuts = PyroMCMC(NUTS(model_of(flow)), 100, 80, disable_progbar=True)
    nuts.run()
    z = nuts.get_samples()["z"]
    assert ((z.mean(0) - exact).abs() < 4 * z.std(0) / 20**0.5).all()  # of 100 draws at least 20 independent ones
    with pyro.settings.context(module_local_params=True):
        guide = AutoNormal(model_of(flow))
        elbo = Trace_ELBO(num_particles=8, vectorize_particles=False)(model_of(flow), guide)
        elbo()
        optimizer = torch.optim.Adam(elbo.parameters(), lr=0.05)
        losses = []
        for _ in range(200):
            optimizer.zero_grad()
            loss = elbo()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    bound = -sum(losses[-100:]) / 100
    assert -sum(losses[:10]) / 10 + 1.0 < bound < log_evidence + 0.05


def test_parameters_train_in_a_model_with_plates():
    class Density(PyroModule):
        def __init__(self):
            super().__init__()
            self.flow = make("MAF", context=1)

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", from_zuko(self.flow, x[:, :1]), obs=x)

    with pyro.settings.context(module_local_params=True):
        density = Density()
        x = torch.randn(64, 3, dtype=torch.float64) * 0.1 + 2.0
        svi = Trace_ELBO()(density.model, lambda x: None)
        optimizer = torch.optim.Adam(density.parameters(), lr=0.01)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = svi(x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_what_it_refuses():
    with pytest.raises(TypeError, match=r"flow must be a lazy flow of zuko .* got NormalizingFlow"):
        from_zuko(make("MAF")())
    with pytest.raises(TypeError, match="got GMM"):
        from_zuko(zuko.flows.GMM(3))
    with pytest.raises(ValueError, match="contexts of 0 features"):
        from_zuko(make("MAF", context=2))
    with pytest.raises(ValueError, match="contexts of 5 features"):
        from_zuko(make("MAF", context=2), torch.zeros(4, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="scalar"):
        from_zuko(make("MAF", context=2), torch.zeros(()))
