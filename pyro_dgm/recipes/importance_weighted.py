"""Importance weighted autoencoders: several draws of the guide for each datum make a tighter bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_dgm.infer import CIWAE, IWAE, MIWAE, PIWAE, DReG
from pyro_dgm.recipes import compose
from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam

__all__ = ["ciwae", "dreg_iwae", "iwae", "miwae", "piwae"]

_RAINFORTH = Citation(
    "T. Rainforth, A. R. Kosiorek, T. A. Le, C. J. Maddison, M. Igl, F. Wood, Y. W. Teh",
    "Tighter Variational Bounds are Not Necessarily Better",
    2018,
    "1802.04537",
)


def _of_burda(
    event_shape: Sequence[int],
    objective: Any,
    learning_rate: float,
    batch_size: int,
    latent_dim: int,
    hidden: Sequence[int],
    activation: str,
    likelihood: Any,
) -> Composition:
    """The network and the optimiser that all of these papers take from the first."""
    return compose.vae(
        event_shape, objective, adam(learning_rate, eps=1e-4), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation=activation, likelihood=likelihood,
    )  # fmt: skip


@recipe(
    "iwae",
    title="Importance weighted autoencoder",
    equation="L_K = E[log (1/K) Σ_k p(x, z_k) / q(z_k|x)] ≤ log p(x),  z_1, ..., z_K from q(z|x)",
    citation=Citation("Y. Burda, R. Grosse, R. Salakhutdinov", "Importance Weighted Autoencoders", 2016, "1509.00519"),
)
def iwae(
    event_shape: Sequence[int],
    *,
    num_particles: int = 50,
    latent_dim: int = 50,
    hidden: Sequence[int] = (200, 200),
    activation: str = "Tanh",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-3,
    batch_size: int = 20,
) -> Composition:
    """Importance weighted autoencoder: a VAE on a bound that K draws make tighter.

    Defaults are those of the paper's model with one stochastic layer: K = 50, 50 latents, two hidden layers of 200
    hyperbolic tangents, batches of 20, Adam with epsilon 1e-4. Its learning rate falls from 1e-3 in eight stages, to
    1e-4 at the end.

    :param event_shape: shape of one datum.
    :param num_particles: draws K of each datum's latents.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: Y. Burda, R. Grosse and R. Salakhutdinov (2016), arXiv:1509.00519.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.iwae((8, 8), hidden=(16,)).objective
        IWAE(num_particles=50)
    """
    return _of_burda(
        event_shape, IWAE(num_particles), learning_rate, batch_size, latent_dim, hidden, activation, likelihood
    )


@recipe(
    "miwae",
    title="Multiply importance weighted autoencoder",
    equation="L_M,K = E[(1/M) Σ_m log (1/K) Σ_k p(x, z_mk) / q(z_mk|x)]",
    citation=_RAINFORTH,
)
def miwae(
    event_shape: Sequence[int],
    *,
    num_outer: int = 8,
    num_inner: int = 8,
    latent_dim: int = 50,
    hidden: Sequence[int] = (200, 200),
    activation: str = "Tanh",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-3,
    batch_size: int = 20,
) -> Composition:
    """MIWAE: the mean of M importance weighted bounds, which gives the guide a clearer gradient than one of MK draws.

    M = K = 8 is a row of the paper's table on MNIST. Networks and optimiser are those of
    :func:`~pyro_dgm.recipes.iwae`.

    :param event_shape: shape of one datum.
    :param num_outer: bounds M that are averaged.
    :param num_inner: draws K of each.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: T. Rainforth, A. R. Kosiorek, T. A. Le et al. (2018), arXiv:1802.04537.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.miwae((8, 8), hidden=(16,)).objective
        MIWAE(num_particles=64, num_outer=8, num_inner=8)
    """
    objective = MIWAE(num_outer=num_outer, num_inner=num_inner)
    return _of_burda(event_shape, objective, learning_rate, batch_size, latent_dim, hidden, activation, likelihood)


@recipe(
    "ciwae",
    title="Combination importance weighted autoencoder",
    equation="L = β ELBO + (1 - β) L_K,  L_K the importance weighted bound of the same K draws",
    citation=_RAINFORTH,
)
def ciwae(
    event_shape: Sequence[int],
    *,
    beta: float = 0.05,
    num_particles: int = 64,
    latent_dim: int = 50,
    hidden: Sequence[int] = (200, 200),
    activation: str = "Tanh",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-3,
    batch_size: int = 20,
) -> Composition:
    """CIWAE: a share of the ELBO keeps the guide's gradient above its noise.

    β = 0.05 with K = 64 is a row of the paper's table on MNIST. Networks and optimiser are those of
    :func:`~pyro_dgm.recipes.iwae`.

    :param event_shape: shape of one datum.
    :param beta: share of the ELBO.
    :param num_particles: draws K of each datum's latents.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: T. Rainforth, A. R. Kosiorek, T. A. Le et al. (2018), arXiv:1802.04537.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.ciwae((8, 8), hidden=(16,)).objective
        CIWAE(num_particles=64, beta=0.05)
    """
    objective = CIWAE(num_particles, beta=beta)
    return _of_burda(event_shape, objective, learning_rate, batch_size, latent_dim, hidden, activation, likelihood)


@recipe(
    "piwae",
    title="Partially importance weighted autoencoder",
    equation="decoder: L_MK;  encoder: (1/M) Σ_m L_K of the same MK draws",
    citation=_RAINFORTH,
)
def piwae(
    event_shape: Sequence[int],
    *,
    num_outer: int = 8,
    num_inner: int = 8,
    latent_dim: int = 50,
    hidden: Sequence[int] = (200, 200),
    activation: str = "Tanh",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-3,
    batch_size: int = 20,
) -> Composition:
    """PIWAE: the tight bound of all draws for the decoder, the mean of looser ones for the encoder.

    M = K = 8 is a row of the paper's table on MNIST. Networks and optimiser are those of
    :func:`~pyro_dgm.recipes.iwae`.

    :param event_shape: shape of one datum.
    :param num_outer: bounds M that are averaged for the encoder.
    :param num_inner: draws K of each.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: T. Rainforth, A. R. Kosiorek, T. A. Le et al. (2018), arXiv:1802.04537.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.piwae((8, 8), hidden=(16,)).objective
        PIWAE(num_particles=64, num_outer=8, num_inner=8)
    """
    objective = PIWAE(num_outer=num_outer, num_inner=num_inner)
    return _of_burda(event_shape, objective, learning_rate, batch_size, latent_dim, hidden, activation, likelihood)


@recipe(
    "dreg_iwae",
    title="Importance weighted autoencoder with doubly reparameterised gradients",
    equation="L_K as of IWAE;  ∇_φ L_K = E[Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ],  w̃_k = w_k / Σ_j w_j",
    citation=Citation(
        "G. Tucker, D. Lawson, S. Gu, C. J. Maddison",
        "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives",
        2019,
        "1810.04152",
    ),
)
def dreg_iwae(
    event_shape: Sequence[int],
    *,
    num_particles: int = 64,
    latent_dim: int = 50,
    hidden: Sequence[int] = (200, 200),
    activation: str = "Tanh",
    likelihood: Any = "bernoulli",
    learning_rate: float = 1e-3,
    batch_size: int = 20,
) -> Composition:
    """IWAE with a gradient for the guide that gets clearer with more draws: the first choice with several draws.

    64 draws are those of the paper's experiments on MNIST. Networks and optimiser are those of
    :func:`~pyro_dgm.recipes.iwae`.

    :param event_shape: shape of one datum.
    :param num_particles: draws K of each datum's latents.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param activation: module between layers, a name in :mod:`torch.nn`.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: G. Tucker, D. Lawson, S. Gu and C. J. Maddison (2019), arXiv:1810.04152.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.dreg_iwae((8, 8), hidden=(16,)).objective
        DReG(num_particles=64)
    """
    return _of_burda(
        event_shape, DReG(num_particles), learning_rate, batch_size, latent_dim, hidden, activation, likelihood
    )
