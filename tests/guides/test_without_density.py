"""Guides that have no density: deterministic ones, and implicit ones."""

from __future__ import annotations

import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_dgm
from pyro_dgm.guides import Deterministic, Implicit
from pyro_dgm.infer import MMDELBO, AdversarialELBO, SlicedWasserstein
from pyro_dgm.models import VAE


class Linear(nn.Module):
    """z = A x + B noise."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]))
        self.b = nn.Parameter(torch.tensor([[2.0, 0.0, 1.0, 0.0], [1.0, 0.5, 0.0, 0.0]]))

    def forward(self, x, noise):
        return x @ self.a.T + noise @ self.b.T


def test_an_implicit_guide_draws_what_its_network_makes_of_noise():
    guide = Implicit((3,), 2, noise_dim=4, network=Linear())
    vae = VAE((3,), 2, "gaussian", hidden=(8,), guide=guide)
    num = 40_000
    x = torch.tensor([0.3, -1.0, 2.0])
    trace = poutine.trace(vae.guide).get_trace(x.expand(num, 3))
    assert trace.nodes["noise"]["infer"]["is_auxiliary"]
    assert [f.name for f in trace.nodes["noise"]["cond_indep_stack"]] == ["data"]
    z = trace.nodes["z"]["value"].detach()
    a, b = guide.encoder.a.detach(), guide.encoder.b.detach()
    covariance = b @ b.T
    # Means to 5 standard errors; covariances, whose error is at most sqrt(2) / sqrt(num) of the largest, likewise.
    assert torch.allclose(z.mean(0), a @ x, atol=5 * float(covariance.diagonal().max() / num) ** 0.5)
    assert torch.allclose(z.T.cov(), covariance, atol=5 * float(covariance.max()) * (2 / num) ** 0.5)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_particles_have_noise_of_their_own_and_data_too(num_particles):
    vae = VAE((2, 2), 2, hidden=(8,), guide=Implicit((2, 2), 2, noise_dim=3, hidden=(8,)))
    x = torch.zeros(5, 2, 2)
    objective = AdversarialELBO(num_particles, hidden=(8,))
    objective.prepare(vae.model, vae.guide, (x,), {})
    particles = objective.particles(vae.model, vae.guide, (x,), {}, grad=False)
    draws = torch.stack([pair[1].nodes["z"]["value"] for pair in particles.pairs]).reshape(-1, 2)
    assert len(draws) == 5 * num_particles == len(draws.unique(dim=0))


@pytest.mark.filterwarnings("error:the program")
@pytest.mark.parametrize(
    "objective", [MMDELBO(alpha=1.0), MMDELBO(2, alpha=1.0), SlicedWasserstein()], ids=["mmd", "mmd-2", "sliced"]
)
def test_a_deterministic_autoencoder_learns_to_reconstruct(objective):
    guide = Deterministic((2, 2), 2, hidden=(16,), activation=nn.Tanh)
    vae = VAE((2, 2), 2, {"name": "gaussian", "scale": 0.5**0.5}, hidden=(16,), guide=guide)
    z = torch.randn(200, 2)
    x = torch.stack([z, z.sin()], -1)
    before = (vae.decode(guide(x).mean) - x).square().sum((1, 2)).mean()
    pyro_dgm.fit(
        vae, x, objective=objective, optimizer=lambda p: torch.optim.Adam(p, 1e-2), epochs=20, batch_size=50, seed=0,
        progress=False,
    )  # fmt: skip
    after = (vae.decode(guide(x).mean) - x).square().sum((1, 2)).mean()
    assert after < 0.3 * before
    assert torch.equal(guide(x).sample(), guide(x).mean)


def test_a_deterministic_guide_takes_a_context():
    guide = Deterministic((3,), 2, hidden=(8,), context_dim=4)
    vae = VAE((3,), 2, "gaussian", hidden=(8,), guide=guide, num_classes=4)
    y = torch.tensor([0, 1, 2, 3, 0])
    posterior = vae.posterior(torch.zeros(5, 3), y)
    assert posterior.event_shape == (2,) and torch.equal(posterior.mean[0], posterior.mean[4])
    assert not torch.equal(posterior.mean[0], posterior.mean[1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Deterministic((3,), 0), ValueError, "latent_dim must be"),
        (lambda: Deterministic((3,), 2, network="rnn"), ValueError, "network must be"),
        (lambda: Implicit((3,), 2, noise_dim=0), ValueError, "noise_dim must be"),
        (lambda: Implicit((3,), 2.0), TypeError, "latent_dim must be"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
