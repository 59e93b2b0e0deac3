"""Variational autoencoders on the ELBO, and on an ELBO whose KL has a weight or a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pyro_dgm.infer import ELBO
from pyro_dgm.ops import LinearSchedule
from pyro_dgm.recipes import compose
from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam

__all__ = ["beta_vae", "capacity_beta_vae", "vae"]


@recipe(
    "vae",
    title="Variational autoencoder",
    equation="L = E_q(z|x)[log p(x|z)] - KL(q(z|x) ‖ p(z)) ≤ log p(x)",
    citation=Citation("D. P. Kingma, M. Welling", "Auto-Encoding Variational Bayes", 2014, "1312.6114"),
)
def vae(
    event_shape: Sequence[int],
    *,
    latent_dim: int = 20,
    hidden: Sequence[int] = (500,),
    activation: str = "Tanh",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-3,
    batch_size: int = 100,
) -> Composition:
    """Variational autoencoder: the model that all others start from.

    Defaults are those of the paper for MNIST: one hidden layer of 500 hyperbolic tangents, 20 latents (it has 3 to
    200), batches of 100. Adam at 1e-3 stands for its Adagrad, whose step size it chose from 0.01 to 0.1.

    :param event_shape: shape of one datum.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: D. P. Kingma and M. Welling (2014), arXiv:1312.6114.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.vae((8, 8), latent_dim=2, hidden=(16,)).parts["decoder"]
        'MLP 2-16-64, Tanh'
    """
    return compose.vae(
        event_shape, ELBO(), adam(learning_rate), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip


@recipe(
    "beta_vae",
    title="β-VAE",
    equation="L = E_q(z|x)[log p(x|z)] - β KL(q(z|x) ‖ p(z))",
    citation=Citation(
        "I. Higgins, L. Matthey, A. Pal, C. Burgess, X. Glorot, M. Botvinick, S. Mohamed, A. Lerchner",
        "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework",
        2017,
        venue="International Conference on Learning Representations",
    ),
)
def beta_vae(
    event_shape: Sequence[int],
    *,
    beta: float = 4.0,
    latent_dim: int = 10,
    hidden: Sequence[int] = (1200, 1200),
    activation: str = "ReLU",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-2,
    batch_size: int = 100,
) -> Composition:
    """β-VAE: a KL that counts β times, for independent ("disentangled") latents at the price of reconstruction.

    Defaults are those of the paper for 2-D shapes: β = 4, ten latents, two hidden layers of 1 200 units, Adagrad at
    1e-2. Its decoder has one layer more, of hyperbolic tangents. The batch size is ours.

    :param event_shape: shape of one datum.
    :param beta: weight of the KL.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adagrad.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: I. Higgins et al. (2017), "beta-VAE", International Conference on Learning Representations.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.beta_vae((8, 8), latent_dim=2, hidden=(16,)).objective
        ELBO(num_particles=1, beta=4.0)
    """
    optimizer = adam(learning_rate, kind=torch.optim.Adagrad)
    return compose.vae(
        event_shape, ELBO(beta=beta), optimizer, batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip


@recipe(
    "capacity_beta_vae",
    title="β-VAE with a capacity that grows",
    equation="L = E_q(z|x)[log p(x|z)] - γ |KL(q(z|x) ‖ p(z)) - C|,  C from 0 to its largest value in training",
    citation=Citation(
        "C. P. Burgess, I. Higgins, A. Pal, L. Matthey, N. Watters, G. Desjardins, A. Lerchner",
        "Understanding disentangling in beta-VAE",
        2018,
        "1804.03599",
    ),
)
def capacity_beta_vae(
    event_shape: Sequence[int],
    *,
    gamma: float = 1000.0,
    capacity: float = 25.0,
    capacity_steps: int = 100_000,
    latent_dim: int = 10,
    hidden: Sequence[int] = (256, 256),
    activation: str = "ReLU",
    likelihood: Any = "bernoulli",
    learning_rate: float = 5e-4,
    batch_size: int = 64,
) -> Composition:
    """β-VAE whose KL is drawn to a capacity that grows in training, so that reconstruction improves again.

    Defaults are those of the paper for 2-D shapes: γ = 1 000, a capacity of 25 nats after 100 000 steps, ten latents,
    Adam at 5e-4. Its networks are convolutional, with two layers of 256 units: these are here. The batch size is ours.

    :param event_shape: shape of one datum.
    :param gamma: strength of the pull to the capacity.
    :param capacity: its last value, nats of a datum.
    :param capacity_steps: training steps in which it grows from 0.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: C. P. Burgess, I. Higgins, A. Pal et al. (2018), arXiv:1804.03599.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.capacity_beta_vae((8, 8), hidden=(16,)).objective.capacity(50_000)
        12.5
    """
    objective = ELBO(beta=gamma, capacity=LinearSchedule(capacity_steps, 0.0, capacity))
    return compose.vae(
        event_shape, objective, adam(learning_rate), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip
