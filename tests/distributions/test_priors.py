"""One contract over every prior: a density, its draws, a configuration, and its place in a VAE."""

import functools
import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyro_dgm
from pyro_dgm.distributions import FlowPrior, MixturePrior, NormalPrior, VampPrior
from pyro_dgm.distributions.priors import PRIORS, prior
from pyro_dgm.infer import ELBO, IWAE
from pyro_dgm.models import VAE

OPTIONS = {
    "normal": {},
    "mixture": {"num_components": 3},
    "vamp": {"num_components": 4},
    "flow": {"transform": "affine_coupling", "num_layers": 2, "hidden": [8]},
}
every = pytest.mark.parametrize("name", list(OPTIONS))


def vae_with(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vae = VAE((3,), 2, hidden=(8,), prior={"name": name, **OPTIONS[name]}, **options).double()
        for p in vae.prior_network.parameters():  # away from where it starts
            p.data += 0.1 * torch.randn_like(p)
    return vae


def test_all_are_here():
    assert set(PRIORS) == {*OPTIONS, "sphere"}  # whose tests are with its distribution


@every
def test_density_integrates_to_one_and_draws_are_of_it(name):
    vae = vae_with(name)
    axis = torch.linspace(-14, 14, 801, dtype=torch.float64)
    with torch.no_grad():
        made = vae.prior()
        grid = torch.cartesian_prod(axis, axis).reshape(801, 801, 2)
        density = made.log_prob(grid).exp()
        assert torch.trapezoid(torch.trapezoid(density, axis), axis).item() == pytest.approx(1.0, abs=1e-6)
        torch.manual_seed(0)
        draws = made.sample((5000,))
    for marginal, x in ((torch.trapezoid(density, axis), draws[:, 0]), (torch.trapezoid(density.T, axis), draws[:, 1])):
        cumulative = np.concatenate(
            [[0.0], np.cumsum((marginal[1:] + marginal[:-1]).numpy() / 2) * (axis[1] - axis[0]).item()]
        )
        found = stats.kstest(x.numpy(), lambda v, c=cumulative: np.interp(v, axis.numpy(), c))
        assert found.pvalue > 1e-3  # 8 tests on one seed


@every
def test_configuration_rebuilds_it(name):
    vae = vae_with(name)
    config = json.loads(json.dumps(vae.config()))
    again = VAE(**config).double()
    again.load_state_dict(vae.state_dict())
    z = torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(again.prior().log_prob(z), vae.prior().log_prob(z))
    assert type(again.prior_network) is PRIORS[name]
    assert repr(vae.prior_network)


@every
def test_it_is_trained_with_the_model(name):
    vae = vae_with(name)
    torch.manual_seed(0)
    x = (torch.rand(40, 3) < torch.tensor([0.9, 0.5, 0.1])).double()
    before = {n: p.detach().clone() for n, p in vae.prior_network.named_parameters()}
    start = IWAE(200).bound(vae.model, vae.guide, x).mean()
    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    pyro_dgm.fit(vae, x, optimizer=adam, epochs=30, seed=0, progress=False, compile=False)
    assert all(not torch.equal(p, before[n]) for n, p in vae.prior_network.named_parameters())
    assert IWAE(200).bound(vae.model, vae.guide, x).mean() > start + 0.05
    assert vae.sample(4, seed=0).shape == (4, 3)
    # the bound of a prior without a closed form, and of particles in a plate, against the plain computation
    torch.manual_seed(1)
    posterior = vae.posterior(x)
    z = posterior.sample((20_000,))
    plain = vae.prior().log_prob(z) + vae.likelihood(vae.decoder(z)).log_prob(x) - posterior.log_prob(z)
    error = plain.std(0) / 20_000**0.5
    bound = torch.stack([ELBO(num_particles=500).bound(vae.model, vae.guide, x) for _ in range(4)]).mean(0)
    assert ((bound - plain.mean(0)).abs() < 5 * error * 11**0.5).all()


@pytest.mark.parametrize("name", [n for n in OPTIONS if PRIORS[n].conditional])
def test_conditional(name):
    vae = vae_with(name, num_classes=3)
    x, y = torch.ones(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    vectors = vae.context.encode((y,), vae.prior_loc)
    made = vae.prior(*vectors)
    assert made.batch_shape == (5,)
    for p in vae.prior_network.parameters():
        p.data.normal_()
    log_prob = vae.prior(*vectors).log_prob(torch.zeros(5, 2, dtype=torch.float64))
    torch.testing.assert_close(log_prob[:2], log_prob[3:])
    assert not torch.isclose(log_prob[0], log_prob[1])
    ELBO()(vae.model, vae.guide)(x, y).backward()
    assert all(p.grad is not None for p in vae.prior_network.parameters())
    assert IWAE(3).bound(vae.model, vae.guide, x, y).shape == (5,)


def test_vamp_is_the_mean_of_the_posteriors_at_its_pseudo_inputs():
    vae = vae_with("vamp")
    z = torch.randn(6, 2, dtype=torch.float64)
    inputs = vae.prior_network.pseudo_inputs.clamp(0, 1)
    each = torch.stack([vae.posterior(u[None]).log_prob(z) for u in inputs])
    torch.testing.assert_close(vae.prior().log_prob(z), each.logsumexp(0) - np.log(4))
    data = torch.rand(4, 3)
    assert torch.equal(VampPrior(2, event_shape=(3,), num_components=4, initial=data).pseudo_inputs.detach(), data)
    free = VampPrior(2, event_shape=(3,), num_components=4, bounds=None, initial=5 * data)
    assert torch.equal(
        free(lambda u: dist.Normal(u[:, :2], 1.0).to_event(1)).component_distribution.mean, 5 * data[:, :2]
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: prior("cauchy", 2), ValueError, "prior must be None, one of"),
        (lambda: prior({"name": "mixture", "components": 2}, 2), ValueError, "has no option .'components'.: it has"),
        (lambda: prior({"name": "custom"}, 2), ValueError, "give it again"),
        (lambda: prior(3, 2), TypeError, "prior must be None or a callable"),
        (lambda: prior(NormalPrior(3), 2), ValueError, "the prior has latent_dim 3, the model 2"),
        (lambda: prior(NormalPrior(2), 2, 4), ValueError, "the prior has context_dim 0, the model 4"),
        (lambda: MixturePrior(2, context_dim=3), ValueError, "does not depend on a context"),
        (lambda: MixturePrior(2, num_components=0), ValueError, "num_components must be"),
        (lambda: VampPrior(2, event_shape=(3,), initial=torch.zeros(2, 3)), ValueError, "initial must have shape"),
        (lambda: VampPrior(2, event_shape=(3,), bounds=(1.0, 0.0)), ValueError, "bounds must be"),
        (lambda: FlowPrior(2, transform="affine"), ValueError, "transform"),
        (lambda: NormalPrior(0), ValueError, "latent_dim must be"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_transform_of_ones_own_reads_custom():
    made = FlowPrior(2, transform=pyro_dgm.distributions.transforms.make_flow("planar", 2, num_layers=1))
    assert VAE((3,), 2, hidden=(8,), prior=made).config()["prior"] == "custom"
