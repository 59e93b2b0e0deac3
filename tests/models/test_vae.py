"""The VAE's own arguments; what holds for every family is in tests/contracts."""

import pytest
import torch
from torch import nn

from pyro_dgm.infer import ELBO
from pyro_dgm.models import VAE
from pyro_dgm.nn import MLP


def test_elbo_is_reconstruction_minus_kl():
    torch.manual_seed(0)
    vae = VAE((4,), 2, hidden=(8,)).double()
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    loc, scale = vae.encode(x)
    kl = 0.5 * (scale**2 + loc**2 - 1 - 2 * scale.log()).sum(-1)
    torch.manual_seed(1)
    ELBO().bound(vae.model, vae.guide, x)  # looks the structure up; draws nothing from the state after this line
    torch.manual_seed(1)
    bound = ELBO().bound(vae.model, vae.guide, x)
    torch.manual_seed(1)
    z = loc + scale * torch.randn(1, 2, dtype=torch.float64)
    logits = vae.decoder(z)
    reconstruction = (x * logits - nn.functional.softplus(logits)).sum(-1)
    torch.testing.assert_close(bound, (reconstruction - kl).detach())


def test_own_networks():
    encoder, decoder = MLP((3, 4), (2, 5), (7,)), MLP((5,), (3, 4), (7,))
    vae = VAE((3, 4), 5, network=(encoder, decoder))
    assert vae.encoder is encoder
    assert vae.decode(torch.zeros(6, 5)).shape == (6, 3, 4)


def test_bad_arguments():
    with pytest.raises(ValueError, match="network must be"):
        VAE((4,), 2, network="transformer")
    with pytest.raises(ValueError, match="latent_dim must be an integer of at least 1"):
        VAE((4,), 0)
    with pytest.raises(ValueError, match=r"event_shape\[1\] must be an integer of at least 1"):
        VAE((4, 0), 2)
    with pytest.raises(ValueError, match="image shape"):
        VAE((4,), 2, network="conv")
    with pytest.raises(ValueError, match="activation must be .* got 'Tahn'"):
        VAE((4,), 2, activation="Tahn")
    with pytest.raises(ValueError, match="outside"):
        VAE((4,), 2).check_batch(torch.full((2, 4), 0.5))
