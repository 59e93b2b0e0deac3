"""Contrastive divergence: its gradient against enumeration, its chains, and its place in fit and SVI."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

import pyro_dgm
from pyro_dgm.distributions import RBMDistribution
from pyro_dgm.infer import ELBO, IWAE, ContrastiveDivergence, NonFiniteLossError, PersistentCD
from pyro_dgm.models import RBM, BoltzmannMachine


def small(seed=0):
    torch.manual_seed(seed)
    rbm = RBM(5, 3).double()
    with torch.no_grad():
        for p in rbm.parameters():
            p.normal_()
    return rbm, torch.randint(2, (8, 5)).double()


def exact_gradient(rbm, x):
    """Of the negative log-likelihood, by enumeration of the visible states."""
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 5)
    law = rbm.distribution()
    nll = len(x) * torch.logsumexp(law.log_prob(states), 0) - law.log_prob(x).sum()
    return torch.autograd.grad(nll, list(rbm.parameters()))


def test_gradient_is_that_of_the_likelihood_where_chains_are_the_models_own():
    rbm, x = small()
    objective = PersistentCD(num_steps=1, num_chains=40_000)
    model = rbm.model
    objective(model, rbm.guide)(x)  # makes chains
    objective.chains = rbm.distribution().exact_sample(40_000)
    rbm.zero_grad()
    objective(model, rbm.guide)(x).backward()
    # A coordinate's standard error: N times the statistic's deviation (at most 1/2) over the root of the chains.
    for p, expected in zip(rbm.parameters(), exact_gradient(rbm, x), strict=True):
        assert ((p.grad - expected).abs() < 4.5 * 8 * 0.5 / 40_000**0.5).all()
        assert expected.abs().max() > 0.5


def test_cd_gradient_by_hand():
    rbm, x = small()
    objective = ContrastiveDivergence(num_steps=2)
    torch.manual_seed(5)
    loss = objective(rbm.model, rbm.guide)(x)
    loss.backward()
    torch.manual_seed(5)
    negative = rbm.distribution().mcmc_step(x, 2)
    h, h_negative = rbm.encode(x), rbm.encode(negative)
    torch.testing.assert_close(rbm.weight.grad, negative.mT @ h_negative - x.mT @ h)
    torch.testing.assert_close(rbm.visible_bias.grad, (negative - x).sum(0))
    torch.testing.assert_close(rbm.hidden_bias.grad, (h_negative - h).sum(0))
    torch.testing.assert_close(loss, (rbm.free_energy(x) - rbm.free_energy(negative)).sum())


def test_cd_of_many_steps_is_unbiased_for_the_likelihood():
    rbm, _ = small()
    x = torch.randint(2, (4000, 5)).double()
    ContrastiveDivergence(num_steps=60)(rbm.model, rbm.guide)(x).backward()
    for p, expected in zip(rbm.parameters(), exact_gradient(rbm, x), strict=True):
        assert ((p.grad - expected).abs() < 4.5 * 0.5 * 4000**0.5).all()


def test_persistent_chains_reach_the_models_law_and_match_moments():
    # At the maximum of the likelihood, means and pair means of a fully visible machine are those of the data.
    torch.manual_seed(0)
    x = (torch.rand(500, 4) < torch.tensor([0.2, 0.5, 0.7, 0.4])).double()
    x[:, 1] = torch.where(torch.rand(500) < 0.7, x[:, 0], x[:, 1])
    bm = BoltzmannMachine(4).double()
    run = pyro_dgm.fit(
        bm, x, objective=PersistentCD(num_chains=2000), epochs=250, batch_size=500,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.1),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.01, 250), seed=0, progress=False,
    )  # fmt: skip
    samples = bm.distribution().exact_sample(200_000)
    assert (samples.mean(0) - x.mean(0)).abs().max() < 0.015
    assert (samples.mT @ samples / len(samples) - x.mT @ x / len(x)).abs().max() < 0.015
    assert abs(run.history["train"][-1]) < 0.2


def test_chains_go_on_and_stand_still_in_evaluation():
    rbm, x = small()
    pcd = PersistentCD(num_chains=10)
    module = pcd(rbm.model, rbm.guide)
    module(x)
    before = pcd.chains.clone()
    with torch.no_grad():
        module(x)
    assert torch.equal(pcd.chains, before)
    module(x)
    assert not torch.equal(pcd.chains, before)
    assert pcd.chains.shape == (10, 5)
    other, _ = small(1)
    pcd(other.model, other.guide)(x)
    assert pcd.chains.shape == (10, 5)


def test_number_of_chains_follows_the_first_batch():
    rbm, x = small()
    pcd = PersistentCD()
    module = pcd(rbm.model, rbm.guide)
    module(x)
    module(x[:3])
    assert pcd.chains.shape == (8, 5)


def test_buffer_moves_some_and_keeps_the_rest():
    rbm, x = small()
    pcd = PersistentCD(num_steps=20, num_chains=10, buffer=100)
    module = pcd(rbm.model, rbm.guide)
    with torch.no_grad():
        module(x)
    before = pcd.chains.clone()
    module(x)
    moved = (pcd.chains != before).any(-1).sum()
    assert 0 < moved <= 10
    assert pcd.chains.shape == (100, 5)


def test_reinit_begins_anew():
    rbm, x = small()
    with torch.no_grad():
        rbm.visible_bias.fill_(-50.0)
        rbm.weight.zero_()
    pcd = PersistentCD(num_chains=10, buffer=10, reinit=1.0, initial="data")
    module = pcd(rbm.model, rbm.guide)
    with torch.no_grad():
        module(torch.ones_like(x))
    assert (pcd.chains == 1).all()
    module(x)
    assert (pcd.chains == 0).all()


def test_fit_resumes_on_the_same_trajectory(tmp_path):
    _, x = small()
    weights = []
    for stops in ([4], [2, 4]):
        rbm, _ = small()
        for i, epochs in enumerate(stops):
            pcd = PersistentCD(num_chains=10)
            pyro_dgm.fit(
                rbm, x, objective=pcd, epochs=epochs, batch_size=4, validation=x, seed=3, progress=False,
                checkpoint_dir=tmp_path / str(len(stops)), resume=True if i else None,
            )  # fmt: skip
        weights.append((rbm.weight.detach().clone(), pcd.chains))
    assert torch.equal(weights[0][0], weights[1][0])
    assert torch.equal(weights[0][1], weights[1][1])


def test_in_pyros_svi():
    rbm, x = small()
    before = float(rbm.log_likelihood(x).mean())
    svi = SVI(rbm.model, rbm.guide, pyro.optim.Adam({"lr": 0.05}), loss=PersistentCD(num_chains=100))
    for _ in range(100):
        svi.step(x)
    assert svi.evaluate_loss(x) == pytest.approx(svi.evaluate_loss(x))
    assert float(rbm.log_likelihood(x).mean()) > before + 0.5
    assert not pyro.get_param_store()


def test_subsampling_scales_the_loss():
    _, x = small()
    law = RBMDistribution(
        torch.zeros(5, 3).double(), torch.ones(5, requires_grad=True).double(), torch.zeros(3).double()
    )

    def model(x, scale):
        with pyro.plate("data", 8 * scale, subsample=torch.arange(8)):
            pyro.sample("x", law, obs=x)

    losses = []
    for scale in (1, 10):
        torch.manual_seed(0)
        losses.append(ContrastiveDivergence()(model, lambda *_: None)(x, scale))
    torch.testing.assert_close(losses[1], 10 * losses[0])


def test_nonfinite_energies_stop_with_their_cause():
    rbm, x = small()
    with torch.no_grad():
        rbm.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="the energy at site 'x' is nan at . of 8 data"):
        ContrastiveDivergence()(rbm.model, rbm.guide)(x)
    with pytest.raises(ValueError, match="the energy is not finite: weight of RBM hold NaN or infinity"):
        rbm.log_normalizer("ais", num_temperatures=10)
    rbm, x = small()

    class Infinite(RBMDistribution):
        def state_log_prob(self, state):
            return super().state_log_prob(state) - math.inf

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", Infinite(rbm.weight, rbm.visible_bias, rbm.hidden_bias, validate_args=False), obs=x)

    with pytest.raises(ValueError, match="the energy at site 'x' is inf at 10 of 10 negative samples"):
        PersistentCD(num_chains=10)(model, lambda x: None)(x)


def test_fit_names_the_site_of_a_nonfinite_energy():
    rbm, x = small()

    def poison(run):
        with torch.no_grad():
            rbm.weight[0, 0] = math.nan

    with pytest.raises(NonFiniteLossError, match=r"site 'x' is the first: its log-probability is not finite") as raised:
        pyro_dgm.fit(rbm, x, objective=PersistentCD(), epochs=3, callbacks=[poison], progress=False)
    assert raised.value.site == "x"


def test_programs_of_another_kind_are_refused():
    _, x = small()

    def latent(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(0.5).expand([5]).to_event(1), obs=x)

    def normal(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(0.5).expand([5]).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"the model samples \['z'\]"):
        ContrastiveDivergence()(latent, lambda x: None)(x)
    with pytest.raises(ValueError, match="one site, of unnormalised density"):
        ContrastiveDivergence()(normal, lambda x: None)(x)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(4)])
def test_bounds_refuse_an_unnormalised_density(objective):
    rbm, x = small()
    with pytest.raises(ValueError, match="the observed site 'x' has a density known up to a constant"):
        pyro_dgm.fit(rbm, x, objective=objective, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveDivergence(0), "num_steps must be an integer of at least 1"),
        (lambda: PersistentCD(num_chains=0), "num_chains must be an integer of at least 1"),
        (lambda: PersistentCD(buffer=0), "buffer must be an integer of at least 1"),
        (lambda: PersistentCD(num_chains=10, buffer=5), "buffer must hold at least num_chains = 10"),
        (lambda: PersistentCD(reinit=1.5), r"reinit must be in \[0, 1\]"),
        (lambda: PersistentCD(initial="prior"), "initial must be 'noise' or 'data'"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_objectives_can_be_copied():
    rbm, x = small()
    pcd = PersistentCD(num_chains=3)
    pcd(rbm.model, rbm.guide)(x)
    assert torch.equal(copy.deepcopy(pcd).chains, pcd.chains)
