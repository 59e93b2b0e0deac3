"""Autoencoders that match the aggregate posterior to the prior, or learn the ratio of the two: InfoVAE, WAE, AVB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_dgm.guides import Deterministic, Implicit
from pyro_dgm.infer import MMDELBO, AdversarialELBO, SlicedWasserstein
from pyro_dgm.nn.build import activation_and_name
from pyro_dgm.recipes import compose
from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam

__all__ = ["avb", "info_vae", "swae", "wae_mmd"]

#: with this standard deviation the negative log-likelihood is the squared error, up to a constant
SQUARED_ERROR = 0.5**0.5


@recipe(
    "info_vae",
    title="InfoVAE with the maximum mean discrepancy",
    equation="L = E_q[log p(x|z)] - (1 - α) KL(q(z|x) ‖ p(z)) - (α + λ - 1) MMD²(q(z), p(z)),  q(z) = E_x q(z|x)",
    citation=Citation(
        "S. Zhao, J. Song, S. Ermon", "InfoVAE: Information Maximizing Variational Autoencoders", 2019, "1706.02262"
    ),
)
def info_vae(
    event_shape: Sequence[int],
    *,
    alpha: float = 0.0,
    lam: float = 10.0,
    latent_dim: int = 10,
    hidden: Sequence[int] = (400, 400),
    activation: str = "ReLU",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-3,
    batch_size: int = 100,
) -> Composition:
    """InfoVAE: the aggregate posterior is drawn to the prior, so that latents keep information of the datum.

    The paper recommends α = 0 or 1, and λ so large that the discrepancy counts as much as the reconstruction. The
    numbers here are ours.

    :param event_shape: shape of one datum.
    :param alpha: how much of the KL is taken off, at most 1.
    :param lam: weight λ of the aggregate divergence.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: S. Zhao, J. Song and S. Ermon (2019), arXiv:1706.02262.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.info_vae((8, 8), hidden=(16,), lam=1000.0).objective
        MMDELBO(num_particles=1, lam=1000.0)
    """
    return compose.vae(
        event_shape, MMDELBO(alpha=alpha, lam=lam), adam(learning_rate), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip


def _encoder(event_shape: Sequence[int], latent_dim: int, hidden: Sequence[int], activation: str) -> Deterministic:
    made, _ = activation_and_name(activation)
    return Deterministic(event_shape, latent_dim, hidden=hidden, activation=made)


@recipe(
    "wae_mmd",
    title="Wasserstein autoencoder with the maximum mean discrepancy",
    equation="loss = E_x |x - G(z)|² + λ MMD²(q(z), p(z)),  z = e(x), inverse multiquadratic kernel",
    citation=Citation(
        "I. Tolstikhin, O. Bousquet, S. Gelly, B. Schoelkopf", "Wasserstein Auto-Encoders", 2018, "1711.01558"
    ),
)
def wae_mmd(
    event_shape: Sequence[int],
    *,
    lam: float = 10.0,
    scale: float = SQUARED_ERROR,
    latent_dim: int = 8,
    hidden: Sequence[int] = (400, 400),
    activation: str = "ReLU",
    learning_rate: float = 1e-3,
    batch_size: int = 100,
) -> Composition:
    """WAE-MMD: a deterministic autoencoder whose codes are drawn to the prior, for samples that decode well.

    Defaults are those of the paper for MNIST: eight latents, λ = 10, batches of 100, Adam at 1e-3 with betas 0.5 and
    0.999, the kernel with C = 2 times the number of latents, and a deterministic encoder. Its networks are
    convolutional; the widths here are ours.

    :param event_shape: shape of one datum.
    :param lam: weight λ of the discrepancy.
    :param scale: standard deviation of the normal likelihood; the default makes it the squared error.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch, at least two.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: I. Tolstikhin, O. Bousquet, S. Gelly and B. Schoelkopf (2018), arXiv:1711.01558.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.wae_mmd((8, 8), hidden=(16,)).parts["guide"]
        'Deterministic, encoder MLP 64-16-8, ReLU'
    """
    return compose.vae(
        event_shape, MMDELBO(alpha=1.0, lam=lam, kernel="imq"), adam(learning_rate, betas=(0.5, 0.999)), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood={"name": "gaussian", "scale": scale},
        guide=_encoder(event_shape, latent_dim, hidden, activation),
    )  # fmt: skip


@recipe(
    "swae",
    title="Sliced Wasserstein autoencoder",
    equation="loss = E_x |x - G(z)|² + λ SW₂²(q(z), p(z)),  z = e(x), over random directions",
    citation=Citation(
        "S. Kolouri, P. E. Pope, C. E. Martin, G. K. Rohde", "Sliced-Wasserstein Autoencoder", 2018, "1804.01947"
    ),
)
def swae(
    event_shape: Sequence[int],
    *,
    lam: float = 10.0,
    num_projections: int = 50,
    scale: float = SQUARED_ERROR,
    latent_dim: int = 8,
    hidden: Sequence[int] = (400, 400),
    activation: str = "ReLU",
    learning_rate: float = 1e-3,
    batch_size: int = 500,
) -> Composition:
    """SWAE: as :func:`~pyro_dgm.recipes.wae_mmd`, with a distance that has no kernel to choose.

    The paper's networks are convolutional, and its prior is uniform; here it is normal, and the numbers are ours. Take
    batches of some hundred data: the distance is biased in small ones.

    :param event_shape: shape of one datum.
    :param lam: weight λ of the distance.
    :param num_projections: directions that it is averaged over.
    :param scale: standard deviation of the normal likelihood; the default makes it the squared error.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: S. Kolouri, P. E. Pope, C. E. Martin and G. K. Rohde (2018), arXiv:1804.01947.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.swae((8, 8), hidden=(16,)).training["batch_size"]
        500
    """
    return compose.vae(
        event_shape, SlicedWasserstein(lam=lam, num_projections=num_projections), adam(learning_rate), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood={"name": "gaussian", "scale": scale},
        guide=_encoder(event_shape, latent_dim, hidden, activation),
    )  # fmt: skip


@recipe(
    "avb",
    title="Adversarial variational Bayes",
    equation="L = E_q(z|x)[log p(x|z) - T(x, z)],  T → log q(z|x) / p(z) by a discriminator,  z = e(x, ε)",
    citation=Citation(
        "L. Mescheder, S. Nowozin, A. Geiger",
        "Adversarial Variational Bayes: Unifying Variational Autoencoders and Generative Adversarial Networks",
        2017,
        "1701.04722",
    ),
)
def avb(
    event_shape: Sequence[int],
    *,
    noise_dim: int = 32,
    discriminator_hidden: Sequence[int] = (512, 512),
    discriminator_learning_rate: float = 1e-4,
    latent_dim: int = 8,
    hidden: Sequence[int] = (400, 400),
    activation: str = "ReLU",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-4,
    batch_size: int = 64,
) -> Composition:
    """AVB: a posterior of any shape, given by a network of datum and noise; a discriminator stands for its density.

    For few latents: the ratio of densities is hard to learn where posterior and prior are far apart. The paper trains
    with Adam at 1e-4; it has convolutional networks and, for MNIST, an "adaptive contrast" that is not here. The sizes
    are ours.

    :param event_shape: shape of one datum.
    :param noise_dim: length of the noise.
    :param discriminator_hidden: hidden widths of the discriminator.
    :param discriminator_learning_rate: of its Adam.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of the program's Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: L. Mescheder, S. Nowozin and A. Geiger (2017), arXiv:1701.04722.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.avb((8, 8), hidden=(16,)).phases[0].role
        'objective'
    """
    made, _ = activation_and_name(activation)
    return compose.vae(
        event_shape, AdversarialELBO(hidden=discriminator_hidden, discriminator_steps=1),
        compose.with_discriminator(adam(learning_rate), adam(discriminator_learning_rate)), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
        guide=Implicit(event_shape, latent_dim, noise_dim, hidden=hidden, activation=made),
    )  # fmt: skip
