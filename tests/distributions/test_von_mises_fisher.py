"""Directions: densities against scipy's, draws, and the gradients of draws against exact derivatives."""

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import special, stats
from torch.distributions import kl_divergence

import pyro_dgm
from pyro_dgm.distributions import UniformSphere, VonMisesFisher
from pyro_dgm.guides import AmortizedVonMisesFisher
from pyro_dgm.infer import ELBO, IWAE
from pyro_dgm.models import VAE

CASES = [(m, k) for m in (2, 3, 5, 30, 200) for k in (0.01, 1.0, 20.0, 3000.0) if k > 1 or m < 200]


def vmf(dim, kappa, dtype=torch.float64, seed=0):
    loc = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return VonMisesFisher((loc / loc.norm()).to(dtype), torch.tensor(kappa, dtype=dtype, requires_grad=True))


def ratio(dim, kappa):
    """E[cos] by scaled Bessel functions."""
    return special.ive(dim / 2, kappa) / special.ive(dim / 2 - 1, kappa)


@pytest.mark.parametrize(("dim", "kappa"), CASES)
def test_density_and_entropy_are_scipys(dim, kappa):
    d = vmf(dim, kappa)
    x = UniformSphere(dim, d.loc).sample((6,))
    oracle = stats.vonmises_fisher(d.loc.numpy(), kappa)
    torch.testing.assert_close(d.log_prob(x).detach().numpy(), oracle.logpdf(x.numpy()), rtol=1e-9, atol=1e-9)
    expected = ratio(dim, kappa)
    assert d.mean_cosine.item() == pytest.approx(expected, rel=1e-9)
    assert d.entropy().item() == pytest.approx(oracle.entropy().item(), rel=1e-8, abs=1e-8)
    # the derivative of the normaliser is minus the mean cosine, exactly
    (slope,) = torch.autograd.grad(d.log_prob(d.loc), d.concentration)
    assert slope.item() == pytest.approx(1 - d.mean_cosine.item(), rel=1e-6, abs=1e-9)
    single = vmf(dim, kappa, torch.float32)
    torch.testing.assert_close(single.log_prob(x.float()), d.log_prob(x).float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 10])
@pytest.mark.parametrize("kappa", [0.1, 4.0, 200.0])
def test_draws_are_of_the_density_and_their_gradient_is_right(dim, kappa):
    torch.manual_seed(dim)
    d = vmf(dim, kappa)
    x = d.rsample((20_000,))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(20_000, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    cosine = x @ d.loc
    angle = torch.linspace(0, torch.pi, 200_001, dtype=torch.float64)
    density = torch.exp(-2 * kappa * (angle / 2).sin().square()) * angle.sin().pow(dim - 2)
    cumulative = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, angle)])
    cumulative = (cumulative / cumulative[-1]).numpy()
    found = stats.kstest(cosine.detach().acos().numpy(), lambda v: np.interp(v, angle.numpy(), cumulative))
    assert found.pvalue > 1e-3  # 9 tests on fixed seeds
    # around the mean all directions are alike
    across = x.detach() - cosine.detach()[:, None] * d.loc
    assert (across.mean(0).abs() < 4.5 * across.std(0) / 20_000**0.5 + 1e-9).all()
    # d/dk E[cos] = 1 - A^2 - (m - 1) A / k
    grads = torch.autograd.grad(cosine.sum(), d.concentration, retain_graph=True)[0] / 20_000
    a = ratio(dim, kappa)
    exact = 1 - a**2 - (dim - 1) * a / kappa
    # and of the second moment, for which the spread of the draws' own slopes counts
    spread = torch.stack([torch.autograd.grad(c, d.concentration, retain_graph=True)[0] for c in cosine[:300]]).std()
    assert abs(grads.item() - exact) < 4 * spread.item() / 20_000**0.5


def test_divergence_from_the_uniform_distribution():
    torch.manual_seed(0)
    d, uniform = vmf(4, 7.0), UniformSphere(4)
    x = d.sample((20_000,))
    terms = (d.log_prob(x) - uniform.log_prob(x)).detach()
    assert abs(kl_divergence(d, uniform).item() - terms.mean().item()) < 4 * terms.std().item() / 20_000**0.5
    assert uniform.entropy().item() == pytest.approx(np.log(2 * np.pi**2))
    assert kl_divergence(vmf(4, 1e-8), uniform).item() == pytest.approx(0, abs=1e-12)


def test_shapes_and_support():
    d = VonMisesFisher(torch.eye(3)[:2], torch.ones(4, 1))
    assert d.batch_shape == (4, 2) and d.event_shape == (3,)
    x = d.expand((5, 4, 2)).rsample((6,))
    assert x.shape == (6, 5, 4, 2, 3) and d.log_prob(x).shape == (6, 5, 4, 2) and d.mean.shape == (4, 2, 3)
    assert d.support.check(x).all()
    sphere = UniformSphere(3).expand((4, 2))
    assert sphere.sample().shape == (4, 2, 3) and sphere.log_prob(x).shape == (6, 5, 4, 2)
    with pytest.raises(ValueError, match="loc must have shape"):
        VonMisesFisher(torch.ones(1), torch.tensor(1.0))
    with pytest.raises(ValueError, match="dim must be an integer of at least 2"):
        UniformSphere(1)
    with pytest.raises(ValueError, match="concentration"):
        VonMisesFisher(torch.eye(3)[0], torch.tensor(-1.0), validate_args=True)


def test_a_hyperspherical_autoencoder():
    torch.manual_seed(0)
    x = (torch.rand(40, 6) < 0.9).float()
    guide = AmortizedVonMisesFisher((6,), 3, hidden=(16,))
    vae = VAE((6,), 3, hidden=(16,), prior="sphere", guide=guide)
    # the closed form of the divergence is taken, and the bound is that of sampled terms
    torch.manual_seed(1)
    bound = ELBO(num_particles=200).bound(vae.model, vae.guide, x).mean()
    plain = torch.stack([IWAE(1).bound(vae.model, vae.guide, x) for _ in range(50)])
    assert abs(bound - plain.mean()) < 4 * plain.mean(1).std() / 50**0.5
    run = pyro_dgm.fit(vae, x, epochs=10, batch_size=20, seed=0, progress=False, compile="graph")
    history = run.history["train"]
    assert history[-1] > history[0]
    trace = poutine.trace(vae.guide).get_trace(x)
    torch.testing.assert_close(trace.nodes["z"]["value"].norm(dim=-1), torch.ones(40), rtol=1e-5, atol=1e-5)
    assert vae.sample(3, seed=0).shape == (3, 6)


def test_a_recorded_graph_and_vmap_give_the_same():
    d = vmf(5, 3.0)
    loc, kappa = d.loc, d.concentration.detach()

    def fn(loc, kappa):
        d = VonMisesFisher(loc, kappa, validate_args=False)
        return d.rsample(), d.log_prob(loc), d.entropy()

    graph = torch.fx.experimental.proxy_tensor.make_fx(fn)(loc, kappa)
    for again in (graph, torch.func.vmap(fn, randomness="different")):
        torch.manual_seed(0)
        expected = fn(loc, kappa)
        torch.manual_seed(0)
        found = again(loc, kappa) if again is graph else [v[0] for v in again(loc[None], kappa[None])]
        for a, b in zip(expected[1:], found[1:], strict=True):
            torch.testing.assert_close(a, b)
        if again is graph:
            torch.testing.assert_close(expected[0], found[0])
