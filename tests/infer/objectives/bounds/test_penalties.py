"""Penalties on the aggregate posterior: means and mean gradients against integrals, values against loops."""

import copy
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

from pyro_dgm import fit
from pyro_dgm.infer import ELBO, CapturedELBO
from pyro_dgm.infer.objectives.aggregate.aggregate import latents, prior_draws
from pyro_dgm.infer.objectives.aggregate.betatc import BetaTC
from pyro_dgm.infer.objectives.aggregate.dip import DIP
from pyro_dgm.infer.objectives.aggregate.factorised import pairwise_log_q
from pyro_dgm.infer.objectives.aggregate.mmd import MMDELBO
from pyro_dgm.infer.objectives.aggregate.sliced import SlicedWasserstein
from pyro_dgm.models import LinearGaussian
from pyro_dgm.ops.divergences import mmd, sliced_wasserstein

DTYPE = torch.float64
PENALTIES = {"MMDELBO": MMDELBO, "SlicedWasserstein": SlicedWasserstein, "BetaTC": BetaTC, "DIP": DIP}
every = pytest.mark.parametrize("cls", list(PENALTIES.values()), ids=list(PENALTIES))


class Plane(torch.nn.Module):
    """Two latents a datum, a learned Gaussian prior, an affine Gaussian guide: every expectation is an integral."""

    def __init__(self, num_data=4, subsample=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(num_data, 3, generator=generator, dtype=DTYPE)
        self.num_data, self.subsample = num_data, subsample
        self.weight = torch.nn.Parameter(torch.randn(2, 3, generator=generator, dtype=DTYPE))
        self.encode = torch.nn.Parameter(0.7 * torch.randn(3, 2, generator=generator, dtype=DTYPE))
        self.log_scale = torch.nn.Parameter(torch.tensor([-0.6, -0.2], dtype=DTYPE))
        self.prior_loc = torch.nn.Parameter(torch.tensor([0.2, -0.1], dtype=DTYPE))
        self.prior_log_scale = torch.nn.Parameter(torch.tensor([0.1, -0.1], dtype=DTYPE))

    def model(self):
        with pyro.plate("data", self.num_data, subsample_size=self.subsample) as i:
            z = pyro.sample("z", dist.Normal(self.prior_loc, self.prior_log_scale.exp()).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight, 1.0).to_event(1), obs=self.x[i])

    def guide(self):
        with pyro.plate("data", self.num_data, subsample_size=self.subsample) as i:
            pyro.sample("z", dist.Normal(self.x[i] @ self.encode, self.log_scale.exp()).to_event(1))

    @property
    def loc(self):
        return self.x @ self.encode

    def reconstruction(self):
        """Mean of log p(x|z) for each datum."""
        error = ((self.x - self.loc @ self.weight) ** 2).sum(-1)
        spread = ((self.log_scale.exp()[:, None] * self.weight) ** 2).sum()
        return -0.5 * (error + spread) - 1.5 * math.log(2 * math.pi)

    def kl(self):
        q = torch.distributions.Normal(self.loc, self.log_scale.exp())
        p = torch.distributions.Normal(self.prior_loc, self.prior_log_scale.exp())
        return torch.distributions.kl_divergence(q, p).sum(-1)

    def expected_mmd(self, kernel):
        """Of the U-statistic: pairs of different data, draws of the prior, and data with draws."""
        q, p = (2 * self.log_scale).exp(), (2 * self.prior_log_scale).exp()
        loc = self.loc
        apart = ~torch.eye(self.num_data, dtype=torch.bool)
        within = kernel(loc[:, None] - loc, 2 * q)[apart].mean()
        across = kernel(loc - self.prior_loc, q + p).mean()
        return within + kernel(torch.zeros(2, dtype=DTYPE), 2 * p) - 2 * across

    def parts(self):
        """Index-code information, total correlation and dimension-wise KL, by the trapezoid rule on a grid."""
        line = torch.linspace(-10, 10, 201, dtype=DTYPE)
        cell = line[1] - line[0]
        normal = torch.distributions.Normal(self.loc[:, :, None], self.log_scale.exp()[:, None])
        each = normal.log_prob(line)  # (data, dims, grid)
        joint = torch.logsumexp(each[:, 0, :, None] + each[:, 1, None, :], 0) - math.log(self.num_data)
        singles = torch.logsumexp(each, 0) - math.log(self.num_data)
        prior = torch.distributions.Normal(self.prior_loc, self.prior_log_scale.exp()).log_prob(line[:, None]).mT
        entropy = (0.5 * math.log(2 * math.pi * math.e) + self.log_scale).sum()
        joint_entropy = -(joint.exp() * joint).sum() * cell**2
        single_entropies = -(singles.exp() * singles).sum() * cell
        information, correlation = joint_entropy - entropy, single_entropies - joint_entropy
        return information, correlation, (singles.exp() * (singles - prior)).sum() * cell


def gaussian_kernel(square):
    """E exp(-|d|^2 / 2 h^2) of d ~ N(gap, diag variance)."""

    def expected(gap, variance):
        total = square + variance
        return (square / total).sqrt().prod() * torch.exp(-0.5 * (gap**2 / total).sum(-1))

    return expected


def multiquadratic_kernel(square):
    """2 h^2 / (2 h^2 + r^2) is a mixture of Gaussian kernels, with weights exp(-t) and widths h^2 / t."""
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.laguerre.laggauss(60))
    return lambda gap, variance: sum(w * gaussian_kernel(square / t)(gap, variance) for t, w in zip(nodes, weights))


def check_means(objective, toy, want_total, count, replicates, tight=0.15):
    """Loss and gradient, averaged over repetitions, against a differentiable total: 4 standard errors."""
    parameters = list(toy.parameters())
    gradients = torch.autograd.grad(want_total, parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    want = torch.cat([want_total.detach()[None], *(g.flatten() for g in gradients)])
    rows = []
    for _ in range(count):
        loss = objective.differentiable_loss(toy.model, toy.guide)
        grads = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([loss.detach()[None], *(g.flatten() for g in grads)]) / -replicates)
    rows = torch.stack(rows)
    error = rows.std(0) / count**0.5
    z = ((rows.mean(0) - want) / error.clamp(min=1e-9)).abs()
    assert z.max() < 4, f"z scores {z.tolist()}"
    assert error.norm() < tight * want.norm()


@pytest.mark.parametrize(
    ("kernel", "alpha", "lam", "subsample", "vectorize"),
    [
        ("rbf", 0.0, 5.0, None, True),
        ("imq", 1.0, 8.0, None, True),
        ("rbf", 0.3, 6.0, 3, True),
        ("imq", 0.5, 9.0, 3, False),
    ],
)
def test_mmd_means_and_gradients(kernel, alpha, lam, subsample, vectorize):
    torch.manual_seed(0)
    toy = Plane(5, subsample)
    expected = (gaussian_kernel if kernel == "rbf" else multiquadratic_kernel)(torch.tensor(2.0, dtype=DTYPE))
    each = toy.reconstruction() - (1 - alpha) * toy.kl() - (alpha + lam - 1) * toy.expected_mmd(expected)
    objective = MMDELBO(20 if vectorize else 3, alpha=alpha, lam=lam, kernel=kernel, vectorize_particles=vectorize)
    check_means(objective, toy, each.sum(), 250 if vectorize else 400, 1, 0.1)


def test_mmd_becomes_the_elbo():
    m, x = linear_gaussian()
    torch.manual_seed(1)
    got = MMDELBO(3, alpha=0.0, lam=1.0).bound(m.model, m.guide, x)
    torch.manual_seed(1)
    torch.testing.assert_close(got, ELBO(3).bound(m.model, m.guide, x))


@pytest.mark.parametrize("num_data", [1, 2])
def test_sliced_wasserstein_means_and_gradients(num_data):
    """One datum: E |z - p|^2 / d.  Two in one direction each: the pairing with the smaller cost, by loops."""
    torch.manual_seed(2)
    if num_data == 1:
        toy = Plane(1)
        second = (2 * toy.log_scale).exp() + (2 * toy.prior_log_scale).exp() + (toy.loc - toy.prior_loc) ** 2
        want = toy.reconstruction() - 3.0 * second.mean(-1)
        check_means(SlicedWasserstein(30, lam=3.0, num_projections=20), toy, want.sum(), 250, 1)
        return
    toy = Plane(3)
    objective = SlicedWasserstein(4, lam=3.0, num_projections=7)
    torch.manual_seed(5)
    particles = objective.particles(toy.model, toy.guide, (), {})
    state = torch.get_rng_state()
    bound = objective.bound_of(particles)
    torch.set_rng_state(state)
    directions = torch.randn(2, 7, dtype=DTYPE)
    directions = directions / directions.norm(dim=0)
    z, prior = latents(particles), prior_draws(particles)
    costs = [
        ((z @ directions - (prior @ directions)[:, list(p)]) ** 2).mean(1) for p in itertools.permutations(range(3))
    ]
    distance = torch.stack(costs).amin(0).mean()
    log_lik = dist.Normal(z @ toy.weight, 1.0).log_prob(toy.x).sum(-1).mean(0)
    torch.testing.assert_close(bound, log_lik - 3.0 * distance)


@pytest.mark.parametrize("vectorize", [True, False])
def test_total_correlation_means_and_gradients(vectorize):
    """Stratified weights and the whole data set in the batch: the parts and their weighted sum are the integrals."""
    torch.manual_seed(3)
    toy = Plane(4)
    parts = toy.parts()
    torch.testing.assert_close(sum(parts), toy.kl().mean())  # the reference itself
    assert parts[1] > 0.02
    objective = BetaTC(
        20 if vectorize else 3, alpha=0.5, beta=6.0, gamma=2.0, sampling="mss", vectorize_particles=vectorize
    )
    want = toy.reconstruction().sum() - 4 * (0.5 * parts[0] + 6.0 * parts[1] + 2.0 * parts[2])
    check_means(objective, toy, want, 250 if vectorize else 400, 1)
    rows = []
    for _ in range(200):
        with torch.no_grad():
            rows.append(
                torch.stack([p.mean() for p in objective.parts_of(objective.particles(toy.model, toy.guide, (), {}))])
            )
    rows = torch.stack(rows)
    error = rows.std(0) / 200**0.5
    assert ((rows.mean(0) - torch.stack(parts).detach()) / error).abs().max() < 4


@pytest.mark.parametrize("sampling", ["mws", "mss"])
@pytest.mark.parametrize("vectorize", [True, False])
def test_equal_weights_are_the_elbo(sampling, vectorize):
    for covariance in ("diagonal", "full"):
        m, x = linear_gaussian(guide_covariance=covariance)
        got = BetaTC(3, beta=1.0, sampling=sampling, num_data=100, vectorize_particles=vectorize)
        want = ELBO(3, analytic_kl=False, vectorize_particles=vectorize)
        results = []
        for objective in (got, want):
            torch.manual_seed(1)
            results.append(objective.bound(m.model, m.guide, x))
            loss = objective.differentiable_loss(m.model, m.guide, x)
            results[-1] = results[-1], torch.autograd.grad(loss, list(m.parameters()))
        torch.testing.assert_close(*results)


class Uneven(torch.nn.Module):
    """A scalar latent, a vector one, and one in a plate inside the datum; data in two plates."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(2, 3, 4, generator=generator, dtype=DTYPE)  # rows, columns, inside
        self.slope = torch.nn.Parameter(torch.tensor(0.7, dtype=DTYPE))
        root = torch.randn(2, 2, generator=generator, dtype=DTYPE)
        self.covariance = root @ root.mT + torch.eye(2, dtype=DTYPE)

    def draw(self, guide, mask=None):
        x = self.x
        rows, columns = pyro.plate("rows", 2, dim=-3), pyro.plate("columns", 3, dim=-2)
        one = torch.ones((), dtype=DTYPE)
        with rows, columns, poutine.mask(mask=True if mask is None else mask):
            mean = x.mean(-1, keepdim=True)
            a = pyro.sample("a", dist.Normal(self.slope * mean, 0.5) if guide else dist.Normal(0 * one, 1.0))
            loc = torch.stack([mean, -mean], -1) if guide else torch.zeros(2, dtype=DTYPE)
            b = pyro.sample("b", dist.MultivariateNormal(loc, self.covariance))
            with pyro.plate("inside", 4, dim=-1):
                c = pyro.sample("c", dist.Normal(x * self.slope, 0.8) if guide else dist.Normal(0 * one, 1.0))
                if not guide:
                    pyro.sample("x", dist.Normal(a + b.sum(-1) + c, 1.0), obs=x)

    def model(self, mask=None):
        self.draw(False, mask)

    def guide(self, mask=None):
        self.draw(True, mask)

    def densities(self, z):
        """log q of latents (7 in a row) at each datum: joint, and of each dimension; by loops over data."""
        joints, dims = [], []
        sd = self.covariance.diagonal().sqrt()
        for x in self.x.reshape(6, 4):
            mean = x.mean()
            pair = torch.stack([mean, -mean])
            a = dist.Normal(self.slope * mean, 0.5).log_prob(z[..., :1])
            b = dist.Normal(pair, sd).log_prob(z[..., 1:3])
            c = dist.Normal(self.slope * x, 0.8).log_prob(z[..., 3:])
            both = dist.MultivariateNormal(pair, self.covariance).log_prob(z[..., 1:3])
            dims.append(torch.cat([a, b, c], -1))
            joints.append(a.sum(-1) + both + c.sum(-1))
        return torch.stack(joints, -1), torch.stack(dims, -2)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("sampling", ["mws", "mss"])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_by_loops_over_data(vectorize, sampling, masked):
    toy, num_data = Uneven(), 50
    torch.manual_seed(0)
    objective = BetaTC(
        2, alpha=0.3, beta=4.0, gamma=0.7, num_data=num_data, sampling=sampling, vectorize_particles=vectorize
    )
    mask = torch.tensor([[True, True, False], [False, True, True]])[..., None] if masked else None
    particles = objective.particles(toy.model, toy.guide, (mask,), {})
    kept = [i for i in range(6) if mask is None or mask.flatten()[i]]
    z = latents(particles)
    assert z.shape == (2, 6, 7)
    joint, dims = pairwise_log_q(particles, objective)
    want_joint, want_dims = (v.detach() for v in toy.densities(z))
    torch.testing.assert_close(joint.detach(), want_joint)
    torch.testing.assert_close(dims.detach(), want_dims)
    parts = torch.stack(objective.parts_of(particles)).detach()
    for k, i in itertools.product(range(2), kept):
        weights = {}
        for j in kept:
            stratified = 1 / num_data if i == j else (num_data - 1) / (num_data * (len(kept) - 1))
            weights[j] = stratified if sampling == "mss" else 1 / (num_data * len(kept))
        together = math.log(sum(w * math.exp(want_joint[k, i, j]) for j, w in weights.items()))
        apart = sum(math.log(sum(w * math.exp(want_dims[k, i, j, d]) for j, w in weights.items())) for d in range(7))
        standard = dist.Normal(0.0, 1.0).log_prob(z[k, i, [0, *range(3, 7)]]).sum()
        prior = standard.detach() + dist.MultivariateNormal(torch.zeros(2, dtype=DTYPE), toy.covariance).log_prob(
            z[k, i, 1:3].detach()
        )
        want = [want_joint[k, i, i] - together, together - apart, apart - prior]
        torch.testing.assert_close(parts[:, k, i], torch.stack([torch.as_tensor(w) for w in want]).to(DTYPE))
    # and the bound is made of them, averaged over particles
    x = toy.x.reshape(6, 4)
    lik = dist.Normal(z[..., :1] + z[..., 1:3].sum(-1, keepdim=True) + z[..., 3:], 1.0).log_prob(x).sum(-1)
    total = (lik - 0.3 * parts[0] - 4.0 * parts[1] - 0.7 * parts[2]).mean(0)
    bound = objective.bound_of(particles)
    assert bound.shape == (2, 3)
    torch.testing.assert_close(bound.flatten()[kept], total[kept])
    gone = [i for i in range(6) if i not in kept]
    assert (bound.flatten()[gone] == 0).all()
    (slope,) = torch.autograd.grad(bound.sum(), [toy.slope])
    assert torch.isfinite(slope)


def test_gradient_of_weighted_sampling_does_not_know_the_size():
    m, x = linear_gaussian()
    grads, values = [], []
    for num_data in (None, 1000):
        torch.manual_seed(1)
        loss = BetaTC(2, num_data=num_data).differentiable_loss(m.model, m.guide, x)
        values.append(loss.item())
        grads.append(torch.autograd.grad(loss, list(m.parameters())))
    torch.testing.assert_close(*grads)
    # log q(z) and each log q(z_d) fall by log (1000 / 6): alpha 1, beta 6, gamma 1, two dimensions, six data
    shift = math.log(1000 / 6) * (1 + 6 * (2 - 1) - 2)
    assert values[0] - values[1] == pytest.approx(-6 * shift)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("vectorize", [True, False])
def test_dip_against_the_covariance_of_the_guide(covariance, kind, vectorize):
    m, x = linear_gaussian(guide_covariance=covariance)
    with torch.no_grad():
        m.guide_weight.mul_(5)
        if covariance == "full":
            m.guide_lower.fill_(0.4)
    spread = m.guide_weight @ torch.cov(x.mT, correction=0) @ m.guide_weight.mT
    if kind == 2:
        spread = spread + m.guide_scale_tril @ m.guide_scale_tril.mT
    off = 2 * spread[0, 1] ** 2
    want = 3.0 * off + 2.0 * ((spread.diagonal() - 1) ** 2).sum()
    objective = DIP(2, kind=kind, off_diagonal=3.0, diagonal=2.0, vectorize_particles=vectorize)
    parameters = list(m.parameters())
    objective.bound(m.model, m.guide, x)
    torch.manual_seed(1)
    plain = ELBO(2, vectorize_particles=vectorize).differentiable_loss(m.model, m.guide, x) + 6 * want
    torch.manual_seed(1)
    got = objective.differentiable_loss(m.model, m.guide, x)
    torch.testing.assert_close(got, plain)
    torch.testing.assert_close(torch.autograd.grad(got, parameters), torch.autograd.grad(plain, parameters))
    assert DIP(kind=1).diagonal == 100
    assert DIP(kind=2).diagonal == 10


@pytest.mark.parametrize("kind", [1, 2])
def test_dip_over_several_sites_and_masked_data(kind):
    toy = Uneven()
    mask = torch.tensor([[True, True, False], [True, True, True]])[..., None]
    x = toy.x.reshape(6, 4)[mask.flatten()]
    mean = x.mean(-1, keepdim=True)
    means = torch.cat([toy.slope * mean, mean, -mean, toy.slope * x], -1)
    spread = torch.cov(means.mT, correction=0)
    if kind == 2:
        fixed = torch.tensor([0.25, 0, 0, *[0.64] * 4], dtype=DTYPE).diag()
        fixed[1:3, 1:3] = toy.covariance
        spread = spread + fixed
    off = spread - spread.diagonal().diag()
    want = 2.0 * (off**2).sum() + 0.5 * ((spread.diagonal() - 1) ** 2).sum()
    for vectorize in (True, False):
        objective = DIP(2, kind=kind, off_diagonal=2.0, diagonal=0.5, vectorize_particles=vectorize)
        particles = objective.particles(toy.model, toy.guide, (mask,), {})
        torch.testing.assert_close(objective.penalty_of(particles), want)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("cls", "options", "distance"),
    [(MMDELBO, {"alpha": 1.0, "lam": 4.0}, mmd), (SlicedWasserstein, {"lam": 4.0}, sliced_wasserstein)],
)
def test_masked_data_are_left_out(cls, options, distance, vectorize):
    toy = Uneven()
    mask = torch.tensor([[True, True, False], [False, True, True]])[..., None]
    objective = cls(2, vectorize_particles=vectorize, **options)
    torch.manual_seed(0)
    particles = objective.particles(toy.model, toy.guide, (mask,), {})
    torch.manual_seed(1)
    bound = objective.bound_of(particles)
    torch.manual_seed(1)
    z, prior = latents(particles), prior_draws(particles)
    penalty = distance(z[:, mask.flatten()], prior[:, mask.flatten()]).mean()
    lik = dist.Normal(z[..., :1] + z[..., 1:3].sum(-1, keepdim=True) + z[..., 3:], 1.0)
    want = lik.log_prob(toy.x.reshape(6, 4)).sum(-1).mean(0) - 4.0 * penalty
    torch.testing.assert_close(bound.flatten(), torch.where(mask.flatten(), want, 0.0))


def test_prior_draws_of_dependent_latents_are_ancestral():
    x = torch.linspace(2.0, 4.0, 50, dtype=DTYPE)

    def model():
        with pyro.plate("data", 100, subsample_size=50):
            top = pyro.sample("top", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
            low = pyro.sample("low", dist.Normal(0.9 * top, 0.5))
            pyro.sample("x", dist.Normal(low, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 100, subsample_size=50):
            low = pyro.sample("low", dist.Normal(x, 0.1))
            pyro.sample("top", dist.Normal(low + 5, 0.1))

    torch.manual_seed(0)
    for vectorize in (True, False):
        particles = MMDELBO(40, vectorize_particles=vectorize).particles(model, guide, (), {})
        rows = prior_draws(particles).reshape(-1, 2)  # in the guide's order: low, top
        assert rows.shape == (2000, 2)
        want = torch.tensor([[0.81 + 0.25, 0.9], [0.9, 1.0]], dtype=DTYPE)
        assert (torch.cov(rows.mT) - want).abs().max() < 4 * 1.5 / 2000**0.5
        assert rows.mean(0).abs().max() < 4 / 2000**0.5
        assert latents(particles).mean((0, 1)).min() > 2


@every
def test_scales_and_subsampling_stay_outside(cls):
    m, x = linear_gaussian()
    objective = MMDELBO(2, alpha=1.0) if cls is MMDELBO else cls(2)
    torch.manual_seed(0)
    plain = objective.bound(m.model, m.guide, x)
    for scale in (0.1, torch.tensor(0.1, dtype=DTYPE)):
        if cls is DIP and isinstance(scale, torch.Tensor):
            continue  # ELBO has no closed-form divergence under scales that are tensors
        model, guide = (poutine.scale(fn, scale=scale) for fn in (m.model, m.guide))
        torch.manual_seed(0)
        assert objective.loss(model, guide, x) == pytest.approx(-0.1 * plain.sum().item())
    toy = Plane(12, 4)
    torch.manual_seed(0)
    bound = cls().bound(toy.model, toy.guide)
    assert bound.shape == (4,)
    torch.manual_seed(0)
    assert cls().loss(toy.model, toy.guide) == pytest.approx(-3 * bound.sum().item())


def test_a_scale_of_the_latents_weighs_their_penalty():
    toy = Plane(5)

    def scaled(fn, scale):
        class Latents(poutine.messenger.Messenger):
            def _pyro_sample(self, msg):
                if msg["name"] == "z":
                    msg["scale"] = msg["scale"] * scale

        def run():
            with Latents():
                fn()

        return run

    for objective in (MMDELBO(alpha=1.0), BetaTC(), SlicedWasserstein()):
        bounds = []
        for scale in (0.0, 1.0, torch.tensor(0.3, dtype=DTYPE)):
            torch.manual_seed(0)
            pair = scaled(toy.model, scale), scaled(toy.guide, scale)
            bounds.append(objective.bound(*pair))
        torch.testing.assert_close(bounds[2], 0.7 * bounds[0] + 0.3 * bounds[1])


@every
@pytest.mark.parametrize("captured", [False, True])
def test_trained_by_svi_and_by_fit(cls, captured):
    m, x = linear_gaussian(num_data=40)
    objective = cls(2) if cls is not DIP else DIP(2, off_diagonal=1.0)
    if captured:
        objective = CapturedELBO(objective, backend="aten")
    start = copy.deepcopy(m.state_dict())
    svi = SVI(m.model, m.guide, pyro.optim.Adam({"lr": 0.03}), objective)
    losses = torch.tensor([svi.step(x) for _ in range(120)])
    assert losses[-10:].mean() < losses[:10].mean() - 20
    if captured:
        assert objective.status(m.model, m.guide).startswith("captured: 1 graph")
        return
    m.load_state_dict(start)
    run = fit(m, x, objective=objective, epochs=3, batch_size=16, seed=0, progress=False)
    assert len(run.history["train"]) == 3
    assert math.isfinite(run.history["train"][-1])


@every
@pytest.mark.parametrize("vectorize", [True, False])
def test_captured_agrees(cls, vectorize):
    m, x = linear_gaussian()
    captured = CapturedELBO(cls(3, vectorize_particles=vectorize), backend="aten")
    for seed in (1, 2):
        results = []
        for objective in (captured.inner, captured):
            torch.manual_seed(seed)
            loss = objective.differentiable_loss(m.model, m.guide, x)
            results.append((loss.detach(), torch.autograd.grad(loss, list(m.parameters()))))
        torch.testing.assert_close(*results)
    assert captured.status(m.model, m.guide).startswith("captured: 1 graph")


def linear_gaussian(num_data=6, **options):
    torch.manual_seed(0)
    m = LinearGaussian(4, 2, **options).double()
    return m, torch.randn(num_data, 4, dtype=DTYPE)


# What is refused


def flat(latent, num_data=4):
    """A pair over one plate, the guide's latent drawn by ``latent()``."""

    def model():
        with pyro.plate("data", num_data):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.zeros(num_data))

    def guide():
        with pyro.plate("data", num_data):
            latent()

    return model, guide


@every
def test_programs_without_a_plate_of_data(cls):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    with pyro.settings.context(module_local_params=True):
        with pytest.raises(
            ValueError, match=f"{cls.__name__} .*no plate contains every site|{cls.__name__} .*the model does not"
        ):
            cls()(model, AutoNormal(model))(torch.zeros(3))

    def guide(x):
        pyro.sample("mu", dist.Normal(0.5, 1.0))

    with pytest.raises(ValueError, match=f"{cls.__name__} compares the latents of many data, but no plate contains"):
        cls()(model, guide)(torch.zeros(3))


@every
def test_sites_that_are_not_reparameterised(cls):
    logits = torch.zeros(4, requires_grad=True)

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    with pytest.raises(
        ValueError, match=rf"{cls.__name__} needs every guide site reparameterised, but 'z' \(Bernoulli\)"
    ):
        cls()(model, guide)()


@every
def test_enumerated_models(cls):
    def model():
        with pyro.plate("data", 4):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(k.float(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=f"{cls.__name__} .*enumerated sites of the model"):
        cls()(model, guide)()


@pytest.mark.parametrize("objective", [MMDELBO(), BetaTC(sampling="mss")], ids=repr)
def test_too_few_data(objective):
    m, x = linear_gaussian(1)
    with pytest.raises(ValueError, match="needs at least 2 data in a batch, got 1: choose another batch_size"):
        objective.bound(m.model, m.guide, x)
    for other in (MMDELBO(unbiased=False), BetaTC(), DIP(), SlicedWasserstein()):
        assert torch.isfinite(other.bound(m.model, m.guide, x)).all()


@pytest.mark.parametrize("cls", [BetaTC, DIP])
def test_guides_that_do_not_factorise(cls):
    def noisy():
        noise = pyro.sample("noise", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(0.5 * noise.tanh(), event_dim=1))

    for _ in range(2):  # and it is not forgotten
        with pytest.raises(ValueError, match=f"{cls.__name__} .*draws 'noise', which the model does not"):
            OBJECTIVE[cls](*flat(noisy))()
    assert torch.isfinite(MMDELBO(alpha=1.0)(*flat(noisy))())
    assert torch.isfinite(SlicedWasserstein()(*flat(noisy))())

    def model():
        with pyro.plate("data", 4):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=torch.zeros(4))

    def guide():
        with pyro.plate("data", 4):
            b = pyro.sample("b", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("a", dist.Normal(0.5 * b, 1.0))

    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{cls.__name__} .*'a' depends on \['b'\]"):
            OBJECTIVE[cls](model, guide)()

    def mixed():
        base = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
        pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.TanhTransform()]))

    with pytest.raises(ValueError, match=f"{cls.__name__} needs .*'z' .TransformedDistribution. does not have"):
        cls()(*flat(mixed))()


OBJECTIVE = {BetaTC: BetaTC(), DIP: DIP()}


def test_point_masses():
    def point():
        pyro.sample("z", dist.Delta(torch.arange(8.0).reshape(4, 2) / 8, event_dim=1))

    with pytest.raises(ValueError, match=r"BetaTC needs the guide's density of each dimension, which 'z' \(Delta\)"):
        BetaTC()(*flat(point))()
    values = (torch.arange(8.0) / 8).reshape(4, 2)
    particles = DIP(kind=2).particles(*flat(point), (), {})
    spread = torch.cov(values.mT, correction=0)
    want = 10 * 2 * spread[0, 1] ** 2 + 10 * ((spread.diagonal() - 1) ** 2).sum()
    torch.testing.assert_close(DIP(kind=2).penalty_of(particles), want)
    assert torch.isfinite(MMDELBO(alpha=1.0)(*flat(point))())


@pytest.mark.parametrize("cls", [MMDELBO, SlicedWasserstein])
def test_a_learned_prior_must_be_reparameterised(cls):
    logits = torch.zeros(3, requires_grad=True)

    def model(learned):
        mixing = dist.Categorical(logits=logits if learned else logits.detach())
        prior = dist.MixtureSameFamily(mixing, dist.Normal(torch.tensor([-1.0, 0.0, 1.0]), 0.5))
        with pyro.plate("data", 4):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    def guide(learned):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert torch.isfinite(cls()(model, guide)(False))
    with pytest.raises(ValueError, match=f"{cls.__name__} trains the prior by its draws, but those of 'z'"):
        cls()(model, guide)(True)


@every
def test_masks_within_a_datum(cls):
    toy = Uneven()

    def masked(fn):
        class Inside(poutine.messenger.Messenger):
            def _pyro_sample(self, msg):
                if msg["name"] == "c":
                    msg["mask"] = torch.tensor([True, False, True, True])

        def run():
            with Inside():
                fn()

        return run

    with pytest.raises(ValueError, match="mask of 'c' differs within a datum"):
        cls()(masked(toy.model), masked(toy.guide))()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMDELBO(alpha=1.5), "alpha must be at most 1, got 1.5"),
        (lambda: MMDELBO(alpha=0.5, lam=0.2), "lam must be at least 1 - alpha = 0.5, got 0.2"),
        (lambda: MMDELBO(kernel="linear"), "kernel must be"),
        (lambda: MMDELBO(bandwidth=-1.0), "bandwidth and scales must be positive"),
        (lambda: SlicedWasserstein(lam=-1.0), "lam must be at least 0"),
        (lambda: SlicedWasserstein(num_projections=0), "num_projections must be an integer of at least 1"),
        (lambda: BetaTC(beta=-1.0), "beta must be at least 0"),
        (lambda: BetaTC(num_data=0), "num_data must be an integer of at least 1"),
        (lambda: BetaTC(sampling="all"), "sampling must be 'mws' or 'mss'"),
        (lambda: DIP(kind=3), "kind must be 1 or 2, got 3"),
        (lambda: DIP(off_diagonal=-1.0), "off_diagonal and diagonal must be at least 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fewer_data_than_the_batch():
    m, x = linear_gaussian()
    with pytest.raises(ValueError, match="num_data must be at least the 6 data of the batch, got 3"):
        BetaTC(num_data=3).bound(m.model, m.guide, x)
