"""FactorVAE and AdversarialELBO: at the optimal ratio against integrals; whose gradient is whose; learned ratios."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_dgm
from pyro_dgm.infer import ELBO, AdversarialELBO, CapturedELBO, FactorVAE
from pyro_dgm.infer.objectives.adversarial.factor import shuffle
from pyro_dgm.infer.objectives.aggregate.aggregate import latents, prior_draws
from pyro_dgm.models import VAE, LinearGaussian
from tests.infer.objectives.bounds.test_multi_sample import Chain
from tests.infer.objectives.bounds.test_penalties import Plane, Uneven, check_means, flat, linear_gaussian

DTYPE = torch.float64
both = pytest.mark.parametrize("cls", [FactorVAE, AdversarialELBO])
softplus = torch.nn.functional.softplus


class Known(torch.nn.Module):
    """A ratio in closed form, of numbers, and a slope to learn that is zero where the ratio is optimal."""

    def __init__(self, ratio):
        super().__init__()
        self.ratio = ratio
        self.tilt = torch.nn.Parameter(torch.zeros(2, dtype=DTYPE))

    def forward(self, rows):
        z = rows[..., -2:]
        return (self.ratio(rows) + (self.tilt * z).sum(-1) + 0.1 * self.tilt.sum() * z[..., 0] * z[..., 1])[..., None]


def log_normal(value, loc, scale):
    return dist.Normal(loc, scale).log_prob(value).sum(-1)


def conditional_ratio(toy):
    """log q(z|x) - log p(z) of :class:`Plane`, at its present parameters."""
    encode, scale = toy.encode.detach().clone(), toy.log_scale.detach().exp()
    loc, prior_scale = toy.prior_loc.detach().clone(), toy.prior_log_scale.detach().exp()

    def ratio(rows):
        x, z = rows[..., :3], rows[..., 3:]
        return log_normal(z, x @ encode, scale) - log_normal(z, loc, prior_scale)

    return ratio


def aggregate_ratio(toy):
    """log q(z) - sum of log q(z_d), over the data of :class:`Plane`."""
    loc, scale = toy.loc.detach().clone(), toy.log_scale.detach().exp()

    def ratio(z):
        each = dist.Normal(loc, scale).log_prob(z[..., None, :])  # (..., data, dims)
        joint = torch.logsumexp(each.sum(-1), -1) - math.log(len(loc))
        return joint - (torch.logsumexp(each, -2) - math.log(len(loc))).sum(-1)

    return ratio


# Program: bound and mean gradient where the discriminator is optimal


@pytest.mark.parametrize(("subsample", "vectorize"), [(None, True), (3, True), (None, False)])
def test_at_the_optimum_it_is_the_elbo(subsample, vectorize):
    """The learned prior's gradient among them, which the discriminator cannot give."""
    torch.manual_seed(0)
    toy = Plane(4, subsample)
    net = Known(conditional_ratio(toy))
    objective = AdversarialELBO(20 if vectorize else 3, network=lambda width: net, vectorize_particles=vectorize)
    check_means(objective, toy, (toy.reconstruction() - toy.kl()).sum(), 250 if vectorize else 150, 1, 0.2)
    assert objective.learned.width == 5


@pytest.mark.parametrize("vectorize", [True, False])
def test_dependent_latents(vectorize):
    """Two sites; the second's prior is learned, and a function of the first."""
    torch.manual_seed(1)
    toy = Chain()
    a, b, w = (getattr(toy, n).detach().clone() for n in "abw")

    def ratio(rows):
        x, z, y = rows.unbind(-1)
        log_q = dist.Normal(a * x, 0.7).log_prob(z) + dist.Normal(b * z + 0.2 * x, 0.5).log_prob(y)
        return log_q - dist.Normal(0 * z, 1.0).log_prob(z) - dist.Normal(w * z, 0.8).log_prob(y)

    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(12))  # exact: all is quadratic
    weights = (weights[:, None] * weights) / weights.sum() ** 2
    x = toy.x[:, None, None]
    z = toy.a * x + 0.7 * nodes[:, None]
    y = toy.b * z + 0.2 * x + 0.5 * nodes
    log_q = dist.Normal(toy.a * x, 0.7).log_prob(z) + dist.Normal(toy.b * z + 0.2 * x, 0.5).log_prob(y)
    log_p = dist.Normal(0 * z, 1.0).log_prob(z) + dist.Normal(toy.w * z, 0.8).log_prob(y)
    elbo = (weights * (log_p + dist.Normal(y + 0.3 * z, 0.6).log_prob(x) - log_q)).sum()
    objective = AdversarialELBO(
        10 if vectorize else 3, network=lambda width: Known(ratio), vectorize_particles=vectorize
    )
    check_means(objective, toy, elbo, 250 if vectorize else 150, 1, 0.2)


@pytest.mark.parametrize("vectorize", [True, False])
def test_at_the_optimum_it_is_the_total_correlation(vectorize):
    torch.manual_seed(2)
    toy = Plane(4)
    net = Known(aggregate_ratio(toy))
    objective = FactorVAE(20 if vectorize else 3, gamma=5.0, network=lambda width: net, vectorize_particles=vectorize)
    want = (toy.reconstruction() - toy.kl()).sum() - 4 * 5.0 * toy.parts()[1]
    check_means(objective, toy, want, 250 if vectorize else 150, 1, 0.2)


# Discriminator


def make(cls, toy, **options):
    ratio = aggregate_ratio if cls is FactorVAE else conditional_ratio
    net = Known(ratio(toy))
    objective = cls(20, network=lambda width: net, **options)
    objective.structure(toy.model, toy.guide, (), {})
    return objective, net


@both
def test_at_the_optimum_the_discriminator_rests(cls):
    """Its mean gradient is zero there, and beside it points back."""
    torch.manual_seed(3)
    toy = Plane(4)
    objective, net = make(cls, toy)

    def gradients(count):
        rows = []
        for _ in range(count):
            loss = objective.differentiable_loss(toy.model, toy.guide)
            rows.append(torch.autograd.grad(loss, net.tilt)[0])
        return torch.stack(rows)

    rows = gradients(300)
    assert (rows.mean(0) / (rows.std(0) / 300**0.5)).abs().max() < 4
    for tilt in ([0.4, -0.3], [-0.4, 0.3]):
        with torch.no_grad():
            net.tilt.copy_(torch.tensor(tilt, dtype=DTYPE))
        rows = gradients(40)
        slope = rows @ net.tilt.detach()
        assert slope.mean() > 6 * slope.std() / 40**0.5
    # The test must be able to fail: at rest the error is small beside the slope of a tilt.
    assert rows.std(0).norm() / 300**0.5 < 0.1 * rows.mean(0).norm()


@both
@pytest.mark.parametrize("subsample", [None, 3])
def test_whose_gradient_is_whose(cls, subsample):
    """Draw for draw: the network's is that of its logistic loss on fixed draws, the program's that of the bound at a
    fixed network.
    """
    toy = Plane(6, subsample)
    scale = 1 if subsample is None else 2
    objective, net = make(cls, toy)
    with torch.no_grad():
        net.tilt.copy_(torch.tensor([0.7, -0.4]))
    torch.manual_seed(4)
    particles = objective.particles(toy.model, toy.guide, (), {})
    state = torch.get_rng_state()
    z = latents(particles)
    if cls is FactorVAE:
        torch.set_rng_state(state)
        other, _ = shuffle(z.detach(), None)
        rows, others = z, other
        prior = 0.0
    else:
        x = toy.x if subsample is None else toy.x[particles.guides[0].nodes["data"]["value"]]
        x = x.expand(20, *x.shape)
        rows, others = torch.cat([x, z], -1), torch.cat([x, prior_draws(particles)], -1)
        prior = log_normal(z.detach(), toy.prior_loc, toy.prior_log_scale.exp()).mean(0)
    assert rows.shape == others.shape
    logistic = softplus(-net(rows.detach())).mean(0).sum() + softplus(net(others.detach())).mean(0).sum()
    (own,) = torch.autograd.grad(scale * logistic, net.tilt)
    frozen = objective.learned.frozen(rows)
    if cls is FactorVAE:
        bound = ELBO().bound_of(particles) - 10.0 * frozen.mean(0)
    else:
        log_lik = log_normal(toy.x if subsample is None else x[0], z @ toy.weight, torch.ones((), dtype=DTYPE))
        bound = log_lik.mean(0) - frozen.mean(0)
    torch.testing.assert_close(objective.bound_of(particles), bound)
    parameters = list(toy.parameters())
    programs = torch.autograd.grad(-scale * (bound + prior).sum(), parameters, retain_graph=True)
    torch.manual_seed(4)
    loss = objective.differentiable_loss(toy.model, toy.guide)
    torch.testing.assert_close(loss, -scale * bound.sum())
    got = torch.autograd.grad(loss, [net.tilt, *parameters])
    torch.testing.assert_close(got, (own, *programs))
    assert own.norm() > 0.01


def test_shuffled_draws():
    """Each dimension is permuted by itself; with a mask only what counts, which comes first."""
    torch.manual_seed(5)
    z = torch.randn(3, 200, 4, dtype=DTYPE)
    z[..., 1] = z[..., 0]
    found, left = shuffle(z, None)
    assert left is None
    torch.testing.assert_close(found.sort(1).values, z.sort(1).values)
    assert torch.corrcoef(found.reshape(-1, 4).mT)[0, 1].abs() < 4 / 600**0.5
    assert (found[0] != found[1]).all()
    kept = torch.rand(3, 200) < 0.6
    found, left = shuffle(z, kept)
    assert torch.equal(left.sum(1), kept.sum(1))
    for k in range(3):
        count = int(kept[k].sum())
        assert left[k, :count].all()
        torch.testing.assert_close(found[k, :count].sort(0).values, z[k, kept[k]].sort(0).values)


@both
@pytest.mark.parametrize("vectorize", [True, False])
def test_masked_data_are_left_out(cls, vectorize):
    """Of the bound, of both kinds of draws, and of every gradient: what the observed value there is does not matter."""
    toy = Uneven()
    mask = torch.tensor([[True, True, False], [False, True, True]])[..., None]
    objective = cls(2, hidden=(5,), vectorize_particles=vectorize)
    objective.structure(toy.model, toy.guide, (mask,), {})
    torch.nn.init.normal_(objective.learned.net[-1].weight, generator=torch.Generator().manual_seed(0))
    results = []
    for shift in (0.0, 50.0):
        toy.x = toy.x + torch.where(mask, 0.0, shift)
        torch.manual_seed(6)
        bound = objective.bound(toy.model, toy.guide, mask)
        torch.manual_seed(6)
        loss = objective.differentiable_loss(toy.model, toy.guide, mask)
        results.append((bound, torch.autograd.grad(loss, [toy.slope, *objective.parameters()])))
    assert (results[0][0].flatten()[[2, 3]] == 0).all()
    assert (results[0][0].flatten()[[0, 1, 4, 5]] != 0).all()
    torch.testing.assert_close(*results)


# Learned


def compare_ratio(m, x, net):
    """Root mean square of T - (log q - log p), and of the latter about its mean, over draws of the guide."""
    loc, scale = x @ m.guide_weight.mT + m.guide_bias, m.guide_log_scale.exp()
    z = loc + scale * torch.randn_like(loc)
    truth = log_normal(z, loc, scale) - log_normal(z, torch.zeros(()), torch.ones(()))
    return (net(torch.cat([x, z], -1)) - truth).pow(2).mean().sqrt().item(), truth.std(correction=0).item()


@pytest.mark.parametrize("several", [False, True], ids=["one optimiser", "its own"])
def test_fit_learns_the_ratio(several):
    """With the program held still: the network's ratio becomes the true one, and the bound the ELBO."""
    torch.manual_seed(7)
    m, x = LinearGaussian(2, 1), torch.randn(256, 2)
    with torch.no_grad():
        m.guide_weight.copy_(torch.tensor([[0.9, -0.4]]))
        m.guide_log_scale.fill_(-0.5)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    objective = AdversarialELBO(16, hidden=(32, 32))
    adam = functools.partial(torch.optim.Adam, lr=0.005)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    optimizer = {"model": still, "guide": still, "objective": adam}
    if not several:
        m.requires_grad_(False)
        optimizer = adam
    run = pyro_dgm.fit(m, x, objective=objective, optimizer=optimizer, epochs=80, batch_size=64, seed=0, progress=False)
    for name, p in m.named_parameters():
        assert torch.equal(p, before[name]), name
    with torch.no_grad():
        error, spread = compare_ratio(m, x, objective.learned)
        torch.manual_seed(8)
        elbo = ELBO(200).bound(m.model, m.guide, x).mean().item()
    assert error < 0.3 * spread, (error, spread)
    first, last = run.history["train"][0], sum(run.history["train"][-5:]) / 5
    assert abs(last - elbo) < 0.05 < abs(first - elbo), (first, last, elbo)


class Implicit(torch.nn.Module):
    """A Gaussian program whose guide has no density: noise of its own, and a latent computed from it."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.1))
        self.spread = torch.nn.Parameter(torch.tensor(1.0))
        self.shift = torch.nn.Parameter(torch.tensor(0.4))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(torch.zeros(len(x)), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(self.slope * x + self.shift + self.spread * noise))


def test_fit_trains_a_guide_without_a_density():
    """Two optimisers in one run; the guide ends at the posterior, N(x / (1 + s^2), s^2 / (1 + s^2))."""
    torch.manual_seed(9)
    program, x = Implicit(), torch.randn(512) * 1.28**0.5
    optimizer = {
        "guide": functools.partial(torch.optim.Adam, lr=0.01),
        "objective": functools.partial(torch.optim.Adam, lr=0.01),
    }
    objective = AdversarialELBO(4, hidden=(32, 32))
    pyro_dgm.fit(
        program, x, objective=objective, optimizer=optimizer, epochs=60, batch_size=128, seed=0, progress=False
    )
    precision = 1 + 1 / 0.64
    assert program.slope.item() == pytest.approx(1 / 0.64 / precision, abs=0.08)
    assert abs(program.spread.item()) == pytest.approx(precision**-0.5, abs=0.08)
    assert program.shift.item() == pytest.approx(0.0, abs=0.08)


def test_factor_vae_lowers_the_total_correlation():
    """Data of correlated causes, an observation of each: the codes' total correlation, from the data's covariance."""
    torch.manual_seed(10)
    x = torch.randn(400, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.45]]) + 0.3 * torch.randn(400, 2)
    results = {}
    for name, objective in {"elbo": ELBO(4), "factor": FactorVAE(4, gamma=20.0, hidden=(32, 32))}.items():
        m = LinearGaussian(2, 2)
        with torch.no_grad():
            m.weight.copy_(torch.eye(2))
            m.log_scale.fill_(math.log(0.7))
        for p in (m.weight, m.bias, m.log_scale):
            p.requires_grad_(False)
        adam = functools.partial(torch.optim.Adam, lr=0.01)
        pyro_dgm.fit(m, x, objective=objective, optimizer=adam, epochs=60, batch_size=100, seed=0, progress=False)
        with torch.no_grad():
            codes = m.guide_weight @ torch.cov(x.mT) @ m.guide_weight.mT + (2 * m.guide_log_scale).exp().diag()
            results[name] = 0.5 * (codes.diagonal().log().sum() - torch.logdet(codes)).item()
    assert results["elbo"] > 0.05
    assert results["factor"] < 0.3 * results["elbo"], results


# Captured


@both
def test_captured_trains_both_alike(cls):
    weights = []
    for wrap in (lambda o: o, lambda o: CapturedELBO(o, backend="aten")):
        m, x = linear_gaussian()
        objective = wrap(cls(2, hidden=(5,)))
        loss = objective(m.model, m.guide)
        torch.manual_seed(11)
        loss(x)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()
        weights.append(loss.state_dict())
        assert any(n.startswith("learned.") for n in weights[-1])
    torch.testing.assert_close(*weights)
    assert objective.status(m.model, m.guide) == "captured: 1 graph (aten)"


@both
def test_fit_captured_is_fit(cls):
    weights = []
    for depth in (False, "graph"):
        m, x = linear_gaussian(num_data=20)
        objective = cls(2, hidden=(5,))
        pyro_dgm.fit(m, x, objective=objective, epochs=2, batch_size=8, seed=0, compile=depth, progress=False)
        weights.append({**m.state_dict(), **{f"learned.{n}": v for n, v in objective.learned.state_dict().items()}})
    torch.testing.assert_close(*weights)


# What is refused


@both
def test_sites_that_are_not_reparameterised(cls):
    for latent in (dist.Bernoulli(torch.full((2,), 0.5)), dist.Categorical(torch.ones(2, 3))):
        pair = flat(lambda latent=latent: pyro.sample("z", latent.to_event(1)))
        objective = cls()
        for _ in range(2):  # and it is not forgotten
            with pytest.raises(ValueError, match=f"{cls.__name__} needs every guide site reparameterised, but 'z'"):
                objective(*pair)()


@both
def test_programs_without_latents_in_common(cls):
    def model():
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(torch.zeros(4), 1.0), obs=torch.zeros(4))

    objective = cls()
    with pytest.raises(ValueError, match=f"{cls.__name__} needs latents that model and guide share"):
        objective(model, lambda: None)()
    m, x = linear_gaussian()
    assert torch.isfinite(objective.bound(m.model, m.guide, x)).all()  # it is still of no program


@both
def test_enumerated_models(cls):
    def model():
        with pyro.plate("data", 4):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(k.float(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))

    with pytest.raises(ValueError, match=f"{cls.__name__} .*enumerated sites of the model"):
        cls()(model, guide)()


@both
def test_belongs_to_one_program(cls):
    m, x = linear_gaussian()
    objective = cls()
    objective.loss(m.model, m.guide, x)
    for other, batch in (
        (LinearGaussian(4, 3).double(), x),
        (LinearGaussian(4, 2), x.float()),
        (VAE((3, 3), 3), torch.ones(4, 3, 3)),
    ):
        with pytest.raises(ValueError, match=f"{cls.__name__} was built for .* belongs to one program, make a new one"):
            objective.bound(other.model, other.guide, batch)


def test_a_single_datum():
    m, x = linear_gaussian(1)
    with pytest.raises(ValueError, match="FactorVAE needs at least 2 data in a batch, got 1"):
        FactorVAE().bound(m.model, m.guide, x)
    assert AdversarialELBO().bound(m.model, m.guide, x).shape == (1,)


@both
@pytest.mark.parametrize("scale", [0.1, torch.tensor(0.1, dtype=DTYPE)], ids=["number", "tensor"])
def test_scales_stay_outside(cls, scale):
    if cls is FactorVAE and isinstance(scale, torch.Tensor):
        return  # ELBO has no closed-form divergence under scales that are tensors
    m, x = linear_gaussian()
    objective = cls(2)
    objective.structure(m.model, m.guide, (x,), {})
    torch.manual_seed(13)
    plain = objective.bound(m.model, m.guide, x)
    torch.manual_seed(13)
    model, guide = (poutine.scale(fn, scale=scale) for fn in (m.model, m.guide))
    assert objective.loss(model, guide, x) == pytest.approx(-0.1 * plain.sum().item())


@both
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hidden": (3, 0)}, ValueError, r"hidden must be positive integers, one a layer, got \(3, 0\)"),
        ({"hidden": (2.5,)}, ValueError, "hidden must be positive integers"),
        ({"network": 3}, TypeError, "network must be a function .* got int"),
        ({"network": torch.nn.Linear(2, 1)}, TypeError, "network must be a function .* got Linear"),
    ],
)
def test_bad_arguments(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(**options)


def test_bad_gamma():
    for gamma in (-1.0, math.nan):
        with pytest.raises(ValueError, match="gamma must be at least 0"):
            FactorVAE(gamma=gamma)
