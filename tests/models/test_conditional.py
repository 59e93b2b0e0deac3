"""A conditional VAE on digits, and the parts that a VAE takes."""

from __future__ import annotations

import functools

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_dgm
from pyro_dgm.infer import ELBO, IWAE
from pyro_dgm.models import VAE


def test_a_conditional_vae_on_digits():
    digits = pyro_dgm.datasets.digits(binarize="threshold")
    x, y = digits.train[:1000], digits.train_labels[:1000]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, plain = (VAE(x.shape[1:], 4, hidden=(64,), num_classes=classes) for classes in (10, None))
    adam = functools.partial(torch.optim.Adam, lr=3e-3)
    for model, data in ((vae, (x, y)), (plain, x)):
        pyro_dgm.fit(model, data, optimizer=adam, epochs=40, batch_size=100, seed=0, progress=False)
    classes = torch.arange(10).repeat_interleave(200)
    made = vae.sample(2000, classes, seed=0).reshape(10, 200, -1).mean(1)
    means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
    assert (torch.cdist(made, means).argmin(1) == torch.arange(10)).all()  # samples of a class look like its data
    held, labels = digits.test[:200], digits.test_labels[:200]
    right = IWAE(20).bound(vae.model, vae.guide, held, labels).mean()
    wrong = IWAE(20).bound(vae.model, vae.guide, held, (labels + 1) % 10).mean()
    assert right > wrong + 1.0
    gain = IWAE(100).bound(vae.model, vae.guide, held, labels) - IWAE(100).bound(plain.model, plain.guide, held)
    assert gain.mean() > 4 * gain.std() / 200**0.5  # log p(x | y) of held-out digits is above log p(x)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_context_vectors(network):
    hidden = (8,) if network == "mlp" else (4,)
    vae = VAE((1, 8, 8), 3, network=network, hidden=hidden, context_dim=2)
    x, c = torch.rand(5, 1, 8, 8).round(), torch.randn(5, 2)
    vae.check_batch(x, c)
    assert IWAE(4).bound(vae.model, vae.guide, x, c).shape == (5,)
    ELBO()(vae.model, vae.guide)(x, c).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.decoder.parameters())
    assert vae.sample(5, c, seed=0).shape == (5, 1, 8, 8)
    rebuilt = VAE(**vae.config())
    rebuilt.load_state_dict(vae.state_dict())
    torch.testing.assert_close(rebuilt.decode(torch.ones(5, 3), c), vae.decode(torch.ones(5, 3), c))


class MixturePrior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))

    def forward(self):
        component = dist.Normal(self.loc, 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), component)


class FullGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 5)

    def forward(self, x):
        out = self.net(x.flatten(1))
        tril = torch.diag_embed(out[:, 2:4].exp()) + torch.tensor([[0.0, 0.0], [1.0, 0.0]]) * out[:, 4:, None]
        return dist.MultivariateNormal(out[:, :2], scale_tril=tril)


def test_a_prior_and_a_guide_of_ones_own():
    vae = VAE((4, 4), 2, hidden=(8,), prior=MixturePrior(), guide=FullGuide())
    x = torch.rand(6, 4, 4).round()
    run = pyro_dgm.fit(vae, x, epochs=3, seed=0, progress=False)
    assert run.steps == 3
    names = {name for name, _ in vae.named_parameters()}
    assert (
        "prior_network.loc" in names and "guide_network.net.weight" in names and "encoder.layers.0.weight" not in names
    )
    assert not torch.equal(vae.prior_network.loc.detach(), MixturePrior().loc.detach())  # it is trained
    assert vae.posterior(x).batch_shape == (6,)
    with pytest.raises(ValueError, match="encode is of the Gaussian guide"):
        vae.encode(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VAE((4,), 2, num_classes=3, context_dim=2), ValueError, "not both"),
        (lambda: VAE((4,), 2, num_classes=0), ValueError, "num_classes must be"),
        (lambda: VAE((4,), 2, prior=3), TypeError, "prior must be None or a callable"),
        (
            lambda: VAE((4,), 2, prior=lambda: dist.Normal(0.0, 1.0)).prior(),
            ValueError,
            "prior must give a distribution",
        ),
        (lambda: VAE((4,), 2).check_batch(torch.zeros(3, 4), torch.zeros(3)), TypeError, "is not conditional"),
        (lambda: VAE((4,), 2, num_classes=3).check_batch(torch.zeros(3, 4)), TypeError, "conditional on classes"),
        (
            lambda: VAE((4,), 2, num_classes=3).check_batch(torch.zeros(2, 4), torch.tensor([0, 3])),
            ValueError,
            "outside 0 to 2",
        ),
        (
            lambda: VAE((4,), 2, num_classes=3).check_batch(torch.zeros(2, 4), torch.zeros(2)),
            ValueError,
            "must be integers",
        ),
        (
            lambda: VAE((4,), 2, context_dim=3).check_batch(torch.zeros(2, 4), torch.zeros(2, 2)),
            ValueError,
            r"of shape \(2, 3\)",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
