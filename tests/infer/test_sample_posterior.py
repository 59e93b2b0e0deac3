"""sample_posterior: one program, the inference swapped by one argument."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoHierarchicalNormalMessenger,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)

from pyro_dgm import program, sample_posterior, to_arviz
from pyro_dgm.infer import ELBO
from pyro_dgm.infer.mcmc import HMC, KERNELS
from pyro_dgm.models import VAE, LinearGaussian


@pytest.fixture(scope="module")
def exact_guide():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LinearGaussian(event_dim=5, latent_dim=2, guide_covariance="full").double()
        model.set_guide_to_posterior()
        return model, torch.randn(4, 5, dtype=torch.float64)


def test_exact_guide(exact_guide):
    """The guide is the posterior: its moments are right, and log p - log q is the log marginal for every draw."""
    model, x = exact_guide
    post = sample_posterior(model, x, method="guide", num_samples=2000, num_chains=3, seed=0)
    assert post["z"].shape == (3, 2000, 4, 2)
    assert post.method == "guide"
    weights = post.sample_stats["log_p"] - post.sample_stats["log_q"]
    torch.testing.assert_close(weights, model.log_marginal(x).sum().detach().expand(3, 2000))
    z, exact = post.flat()["z"], model.posterior(x)
    n = z.shape[0]
    loc, covariance = exact.loc.detach(), exact.covariance_matrix.detach()
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((z.mean(0) - loc).abs() < 4 * (variance / n).sqrt()).all())
    centred = z - loc
    second = (centred[..., :, None] * centred[..., None, :]).mean(0)
    # var(z_i z_j) = S_ii S_jj + S_ij^2 for a centred Gaussian
    error = ((variance[..., :, None] * variance[..., None, :] + covariance.square()) / n).sqrt()
    assert bool(((second - covariance).abs() < 4 * error).all())
    assert abs(float((centred[:, 0, 0] * centred[:, 1, 0]).mean())) < 4 * float(
        (variance[0, 0] * variance[1, 0] / n).sqrt()
    )
    # independent from one draw to the next
    lag = (centred[1:, 0, 0] * centred[:-1, 0, 0]).mean() / variance[0, 0]
    assert abs(float(lag)) < 4 / math.sqrt(n)


#: whose draws are the posterior's with the settings they come with: of the others the step size is the user's
EXACT = ["guide", *(name for name, kernel in KERNELS.items() if kernel.adjusted or name == "mclmc")]


@pytest.mark.parametrize("method", EXACT)
def test_one_argument_swaps_the_inference(exact_guide, method):
    model, x = exact_guide
    post = sample_posterior(
        model, x, method=method, num_samples=150, num_chains=16, warmup_steps=100, seed=1, progress=False
    )
    assert post["z"].shape == (16, 150, 4, 2)
    assert post.num_chains == 16
    assert post.num_draws == 150
    assert post.method == method
    assert post.args[0] is x
    assert not post["z"].requires_grad
    exact = model.posterior(x)
    scale = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    means = post["z"].mean(1)
    error = means.std(0) / 4
    assert bool(((means.mean(0) - exact.loc).abs() < 5 * error).all())  # 15 degrees of freedom: 5 here is 4 sigma
    assert bool(((post.flat()["z"].std(0) / scale - 1).abs() < 0.15).all())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", ["guide", "mala"])
def test_seed(exact_guide, method):
    model, x = exact_guide
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = sample_posterior(model, x, method=method, num_samples=10, seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    two = sample_posterior(model, x, method=method, num_samples=10, seed=3, progress=False)
    other = sample_posterior(model, x, method=method, num_samples=10, seed=4, progress=False)
    assert torch.equal(one["z"], two["z"])
    assert not torch.equal(one["z"], other["z"])


def test_kernel_instance_and_vae_in_evaluation_mode():
    dropout = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 6))
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Unflatten(-1, (2, 2)))
    vae = VAE((6,), latent_dim=2, network=(encoder, dropout)).train()
    x = (torch.rand(3, 6) > 0.5).float()
    kernel = HMC(num_steps=2)
    post = sample_posterior(vae, x, method=kernel, num_samples=5, warmup_steps=5, seed=0, progress=False)
    assert post["z"].shape == (4, 5, 3, 2)
    assert vae.training
    assert dropout.training
    assert kernel.model is None


def scale_model(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(weights[0], scale), obs=x)


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.uses_param_store
def test_autoguides_with_global_latents(make):
    """An AutoGuide, built by the call; log q against a density written out for one draw."""
    torch.manual_seed(0)
    guide = make(scale_model)
    x = torch.tensor([0.5, -1.0, 2.0])
    post = sample_posterior(program(scale_model, guide), x, num_samples=50, num_chains=2, seed=0)
    assert post["scale"].shape == (2, 50)
    assert post["weights"].shape == (2, 50, 3)
    assert post["scale"].unique().numel() == 100
    draw = {k: v[1, 7] for k, v in post.samples.items()}
    exact = pyro.poutine.trace(pyro.poutine.condition(scale_model, draw)).get_trace(x).log_prob_sum()
    torch.testing.assert_close(post.sample_stats["log_p"][1, 7], exact, rtol=1e-4, atol=1e-4)
    # log q of the constrained draw is that of the unconstrained Gaussian less the log-Jacobians
    u = torch.cat(
        [draw["scale"].log()[None], torch.distributions.biject_to(dist.constraints.simplex).inv(draw["weights"])]
    )
    if make is AutoNormal:
        gaussian = dist.Normal(
            torch.cat([guide.locs.scale[None], guide.locs.weights]),
            torch.cat([guide.scales.scale[None], guide.scales.weights]),
        )
        base = gaussian.log_prob(u).sum()
    else:
        base = guide.get_posterior().log_prob(u)
    ladj = u[0] + torch.distributions.biject_to(dist.constraints.simplex).log_abs_det_jacobian(u[1:], draw["weights"])
    torch.testing.assert_close(post.sample_stats["log_q"][1, 7], (base - ladj).detach(), rtol=1e-3, atol=1e-3)


def test_guide_that_mixes_draws_is_not_run_in_a_plate(caplog):
    """A guide that reduces over every dimension is right alone and wrong inside a plate: it must be noticed."""

    def model(x):
        with pyro.plate("d", 2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a.sum(), 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("d", 2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a.sum(), 0.01))

    with caplog.at_level("INFO", "pyro_dgm"):
        post = sample_posterior((model, guide), torch.tensor(0.0), num_samples=20, num_chains=2, seed=0)
    assert "in a plate: the log-density of site 'b' differs from that of a particle run alone" in caplog.text
    assert float((post["b"] - post["a"].sum(-1)).abs().max()) < 0.06
    assert post.sample_stats["log_q"].shape == (2, 20)


def test_discrete_latents_from_a_guide():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(torch.sigmoid(x - 0.5)))  # the exact posterior

    x = torch.tensor([-1.0, 0.5, 3.0])
    post = sample_posterior((model, guide), x, num_samples=500, seed=0)
    weights = post.sample_stats["log_p"] - post.sample_stats["log_q"]
    torch.testing.assert_close(weights, weights[:1, :1].expand_as(weights), rtol=1e-4, atol=1e-4)
    p = torch.sigmoid(x - 0.5)
    assert bool(((post.flat()["k"].mean(0) - p).abs() < 4 * (p * (1 - p) / 2000).sqrt()).all())


def test_batches_as_mappings_and_plain_models():
    post = sample_posterior(
        scale_model, {"x": torch.zeros(3)}, method="mala", num_samples=5, num_chains=2, seed=0, progress=False
    )
    assert post["weights"].shape == (2, 5, 3)
    assert set(post.kwargs) == {"x"}


def local_model(x):
    """Global and local latents, one of them positive."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    "make", [AutoNormalMessenger, AutoHierarchicalNormalMessenger, AutoRegressiveMessenger], ids=lambda m: m.__name__
)
@pytest.mark.filterwarnings("error:the program cannot be vectorised")
def test_a_messenger_guides_log_q_is_of_its_latents_alone(make):
    """Its trace holds the data too.  log q by hand for each draw, and the evidence by importance weights."""
    torch.manual_seed(0)
    x = torch.tensor([1.5, 2.5, 2.0])
    guide = make(local_model, init_scale=0.7)
    post = sample_posterior((local_model, guide), x, num_samples=500, num_chains=4, seed=0)
    mu, scale, z = (post.flat()[k] for k in ("mu", "scale", "z"))
    prior = {
        "mu": (torch.zeros_like(mu), torch.full_like(mu, 2.0)),
        "scale": (torch.zeros_like(mu), torch.full_like(mu, 0.5)),
        "z": (mu[:, None].expand_as(z), scale[:, None].expand_as(z)),
    }
    log_q = torch.zeros(2000)
    for name, value in (("mu", mu), ("scale", scale.log()), ("z", z)):
        loc, own = getattr(guide.locs, name), getattr(guide.scales, name)
        if make is AutoHierarchicalNormalMessenger:  # the local posterior's location follows the prior's mean
            mean = torch.exp(torch.tensor(0.125)).log() if name == "scale" else prior[name][0]
            loc = loc + getattr(guide.weights, name) * mean
        if make is AutoRegressiveMessenger:
            continue
        term = dist.Normal(loc, own).log_prob(value)
        log_q = log_q + (term.sum(-1) if term.dim() > 1 else term)
    log_q = log_q - scale.log()
    log_p = (
        dist.Normal(0.0, 2.0).log_prob(mu)
        + dist.LogNormal(0.0, 0.5).log_prob(scale)
        + dist.Normal(*prior["z"]).log_prob(z).sum(-1)
        + dist.Normal(z, 1.0).log_prob(x).sum(-1)
    )
    torch.testing.assert_close(post.sample_stats["log_p"].flatten(), log_p, rtol=1e-4, atol=1e-4)
    found = post.sample_stats["log_q"].flatten()
    if make is not AutoRegressiveMessenger:
        torch.testing.assert_close(found, log_q.detach(), rtol=1e-4, atol=1e-4)
    # log p(x) by quadrature over mu and scale, z integrated out
    a, s = torch.linspace(-8, 8, 801), torch.linspace(0.02, 12, 1200)
    joint = dist.Normal(a[:, None, None], (1 + s[None, :, None] ** 2).sqrt()).log_prob(x).sum(-1)
    joint = joint + dist.Normal(0.0, 2.0).log_prob(a)[:, None] + dist.LogNormal(0.0, 0.5).log_prob(s)
    evidence = joint.flatten().logsumexp(0) + math.log(float((a[1] - a[0]) * (s[1] - s[0])))
    weights = (log_p - found).double()
    estimate = weights.logsumexp(0) - math.log(2000)
    error = float(((2 * weights).logsumexp(0) - 2 * weights.logsumexp(0)).exp().sqrt())
    assert abs(float(estimate - evidence)) < 5 * error + 0.01


def positive(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def discrete(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plain(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def column(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z[:, None], 1.0), obs=x)


def nan_scale(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, torch.tensor(math.nan)), obs=x)


def local_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(-1.0, torch.ones(())))


def global_guide(x):
    pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def nan_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.tensor(math.nan), 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (positive, local_guide, "log_prob at site 'z'"),
        (discrete, local_guide, "log_prob at site 'z'"),
        (plain, global_guide, "shapes disagree at site 'z'"),
        (column, local_guide, 'at site "x", invalid log_prob shape'),
        (nan_scale, local_guide, "parameter scale"),
        (plain, nan_guide, "parameter loc"),
    ],
)
def test_what_an_objective_refuses_is_not_drawn_from(model, guide, message):
    x = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for call in (
        lambda: sample_posterior((model, guide), x, num_samples=3, seed=0),
        lambda: to_arviz(program(model, guide), data=x, num_samples=3, seed=0),
        lambda: ELBO().bound(model, guide, x),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert sample_posterior((plain, local_guide), x, num_samples=3, seed=0)["z"].shape == (4, 3, 4)


def random_length(x):
    for t in range(3):
        if pyro.sample(f"stop_{t}", dist.Bernoulli(0.5)) == 1:
            break


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_a_guide_whose_sites_change_from_draw_to_draw_is_refused(seed):
    with pytest.raises(ValueError, match=r"latent sites \['stop_\d'.*in some draws of the guide and not in others"):
        sample_posterior((random_length, random_length), torch.zeros(1), num_samples=20, seed=seed)


def test_latents_that_the_model_sums_out_have_no_draws():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"no site for the latents \['k'\]"):
        sample_posterior((model, lambda x: None), torch.zeros(3), num_samples=3)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=2) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])


def subsampled_guide(x):
    with pyro.plate("data", len(x), subsample_size=2):
        pyro.sample("z", dist.Normal(0.0, 1.0))


X = torch.zeros(3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: sample_posterior(scale_model, X), ValueError, "needs a program with a guide"),
        (
            lambda: sample_posterior(scale_model, X, method="nuts"),
            ValueError,
            r"one of \['annealed-langevin', 'chees', .*'nuts-numpyro', .*got 'nuts'",
        ),
        (lambda: sample_posterior(scale_model, X, method=HMC), TypeError, "kernel instance"),
        (lambda: sample_posterior(3, X), TypeError, "program_or_model must have .model"),
        (
            lambda: sample_posterior((subsampled, subsampled_guide), X),
            ValueError,
            r"plate 'data' is subsampled \(2 of 3\)",
        ),
        (
            lambda: sample_posterior((scale_model, lambda x: None), X),
            ValueError,
            r"samples \['scale', 'weights'\] but the guide does not",
        ),
        (
            lambda: sample_posterior((scale_model, AutoNormal(scale_model)), X, num_chains=0),
            ValueError,
            "num_chains must be",
        ),
        (lambda: sample_posterior(scale_model, X, method=HMC(subsampled)), ValueError, "model or potential of its own"),
        (lambda: sample_posterior(LinearGaussian(5, 2), torch.zeros(3, 4)), ValueError, r"x must have shape"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
