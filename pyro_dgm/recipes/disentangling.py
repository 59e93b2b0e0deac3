"""Variational autoencoders for independent ("disentangled") latents: penalties on the aggregate posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_dgm.infer import DIP, BetaTC, FactorVAE
from pyro_dgm.recipes import compose
from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam

__all__ = ["beta_tc_vae", "dip_vae_i", "dip_vae_ii", "factor_vae"]

_DIP = Citation(
    "A. Kumar, P. Sattigeri, A. Balakrishnan",
    "Variational Inference of Disentangled Latent Concepts from Unlabeled Observations",
    2018,
    "1711.00848",
)


@recipe(
    "beta_tc_vae",
    title="β-TC-VAE",
    equation="L = E_q[log p(x|z)] - α I_q(z; x) - β KL(q(z) ‖ Π_d q(z_d)) - γ Σ_d KL(q(z_d) ‖ p(z_d))",
    citation=Citation(
        "R. T. Q. Chen, X. Li, R. Grosse, D. Duvenaud",
        "Isolating Sources of Disentanglement in Variational Autoencoders",
        2018,
        "1802.04942",
    ),
)
def beta_tc_vae(
    event_shape: Sequence[int],
    *,
    alpha: float = 1.0,
    beta: float = 6.0,
    gamma: float = 1.0,
    num_data: int | None = None,
    latent_dim: int = 10,
    hidden: Sequence[int] = (1200, 1200),
    activation: str = "ReLU",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-3,
    batch_size: int = 2048,
) -> Composition:
    """β-TC-VAE: of the three parts of the KL only the total correlation of the latents gets a weight.

    Defaults are those of the paper for 2-D shapes: α = γ = 1, β = 6, ten latents, two hidden layers of 1 200 units,
    Adam at 1e-3, batches of 2 048. Its decoder has one layer more, of hyperbolic tangents.

    :param event_shape: shape of one datum.
    :param alpha: weight of the information between datum and latents.
    :param beta: weight of the total correlation.
    :param gamma: weight of the KL of each dimension.
    :param num_data: size of the training set, which the estimates count on; ``None`` for that of the batch. It moves
        the value by a constant, not the gradient.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: R. T. Q. Chen, X. Li, R. Grosse and D. Duvenaud (2018), arXiv:1802.04942.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.beta_tc_vae((8, 8), hidden=(16,), beta=4.0).hyperparameters["beta"]
        4.0
    """
    objective = BetaTC(alpha=alpha, beta=beta, gamma=gamma, num_data=num_data)
    return compose.vae(
        event_shape, objective, adam(learning_rate), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip


@recipe(
    "factor_vae",
    title="FactorVAE",
    equation="L = ELBO - γ E_q(z)[T(z)],  T → log q(z) / Π_d q(z_d) by a discriminator",
    citation=Citation("H. Kim, A. Mnih", "Disentangling by Factorising", 2018, "1802.05983"),
)
def factor_vae(
    event_shape: Sequence[int],
    *,
    gamma: float = 35.0,
    discriminator_hidden: Sequence[int] = (1000, 1000, 1000, 1000, 1000, 1000),
    discriminator_learning_rate: float = 1e-4,
    latent_dim: int = 10,
    hidden: Sequence[int] = (400, 400),
    activation: str = "ReLU",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-4,
    batch_size: int = 64,
) -> Composition:
    """FactorVAE: the total correlation of the latents is penalised, by a discriminator that is trained beside.

    Defaults are those of the paper for 2-D shapes: γ = 35, ten latents, a discriminator of six layers of 1 000 units,
    batches of 64, Adam at 1e-4 for both, with betas 0.5 and 0.9 for the discriminator. Its networks are convolutional;
    the widths here are ours.

    :param event_shape: shape of one datum.
    :param gamma: weight of the total correlation.
    :param discriminator_hidden: hidden widths of the discriminator.
    :param discriminator_learning_rate: of its Adam.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of the program's Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: H. Kim and A. Mnih (2018), arXiv:1802.05983.

    Example::

        >>> from pyro_dgm import recipes
        >>> [phase.role for phase in recipes.factor_vae((8, 8), hidden=(16,)).phases]
        ['objective', 'program']
    """
    objective = FactorVAE(gamma=gamma, hidden=discriminator_hidden, discriminator_steps=1)
    optimizer = compose.with_discriminator(adam(learning_rate), adam(discriminator_learning_rate, betas=(0.5, 0.9)))
    return compose.vae(
        event_shape, objective, optimizer, batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip


@recipe(
    "dip_vae_i",
    title="DIP-VAE I",
    equation="L = ELBO - λ_od Σ_i≠j C_ij² - λ_d Σ_i (C_ii - 1)²,  C = Cov_x(E_q[z|x])",
    citation=_DIP,
)
def dip_vae_i(
    event_shape: Sequence[int],
    *,
    off_diagonal: float = 10.0,
    diagonal: float | None = None,
    latent_dim: int = 10,
    hidden: Sequence[int] = (1200, 1200),
    activation: str = "ReLU",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-4,
    batch_size: int = 400,
) -> Composition:
    """DIP-VAE I: the covariance of the posterior means is drawn to the identity.

    The paper takes a weight of the diagonal that is ten times the other. Networks are those of
    :func:`~pyro_dgm.recipes.beta_vae`, and the other numbers are ours.

    :param event_shape: shape of one datum.
    :param off_diagonal: weight of the covariances off the diagonal.
    :param diagonal: weight of those on it; ``None`` for ten times the other.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: A. Kumar, P. Sattigeri and A. Balakrishnan (2018), arXiv:1711.00848.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.dip_vae_i((8, 8), hidden=(16,)).objective.diagonal
        100.0
    """
    objective = DIP(kind=1, off_diagonal=off_diagonal, diagonal=diagonal)  # type: ignore[arg-type]
    return compose.vae(
        event_shape, objective, adam(learning_rate), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip


@recipe(
    "dip_vae_ii",
    title="DIP-VAE II",
    equation="L = ELBO - λ_od Σ_i≠j C_ij² - λ_d Σ_i (C_ii - 1)²,  C = Cov_q(z), q(z) = E_x q(z|x)",
    citation=_DIP,
)
def dip_vae_ii(
    event_shape: Sequence[int],
    *,
    off_diagonal: float = 10.0,
    diagonal: float | None = None,
    latent_dim: int = 10,
    hidden: Sequence[int] = (1200, 1200),
    activation: str = "ReLU",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-4,
    batch_size: int = 400,
) -> Composition:
    """DIP-VAE II: the covariance of the latents themselves is drawn to the identity.

    The paper takes the same weight on the diagonal and off it. Networks are those of
    :func:`~pyro_dgm.recipes.beta_vae`, and the other numbers are ours.

    :param event_shape: shape of one datum.
    :param off_diagonal: weight of the covariances off the diagonal.
    :param diagonal: weight of those on it; ``None`` for the same.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: A. Kumar, P. Sattigeri and A. Balakrishnan (2018), arXiv:1711.00848.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.dip_vae_ii((8, 8), hidden=(16,)).objective.diagonal
        10.0
    """
    objective = DIP(kind=2, off_diagonal=off_diagonal, diagonal=diagonal)  # type: ignore[arg-type]
    return compose.vae(
        event_shape, objective, adam(learning_rate), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip
