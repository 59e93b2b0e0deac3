"""Variational autoencoders whose amortised posterior is a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pyro_dgm.guides import AmortizedFlow
from pyro_dgm.infer import ELBO
from pyro_dgm.ops import LinearSchedule
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.recipes import compose
from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam

__all__ = ["vae_iaf", "vae_planar", "vae_spline", "vae_sylvester"]


def _flow_vae(
    event_shape: Sequence[int],
    transform: str,
    options: Mapping[str, Any],
    num_layers: int,
    num_features: int,
    warmup_steps: int,
    learning_rate: float,
    batch_size: int,
    latent_dim: int,
    hidden: Sequence[int],
    likelihood: Any,
) -> Composition:
    """A VAE with a flow as guide, trained as by van den Berg et al. (2018)."""
    check_count("warmup_steps", warmup_steps, 0)
    guide = AmortizedFlow(
        event_shape, latent_dim, transform, num_layers, hidden=hidden, num_features=num_features, options=options
    )
    return compose.vae(
        event_shape, ELBO(beta=LinearSchedule(warmup_steps)) if warmup_steps else ELBO(),
        adam(learning_rate, kind=torch.optim.Adamax, eps=1e-7), batch_size,
        latent_dim=latent_dim, hidden=hidden, activation="ReLU", likelihood=likelihood, guide=guide,
    )  # fmt: skip


@recipe(
    "vae_iaf",
    title="VAE with an inverse autoregressive flow as posterior",
    equation="L = E_q[log p(x, z) - log q(z|x)],  z = μ(x) + σ(x) f(ε; h(x)),  y_i = ε_i exp(s_i(ε_<i)) + b_i(ε_<i)",
    citation=Citation(
        "D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling",
        "Improving Variational Inference with Inverse Autoregressive Flow",
        2016,
        "1606.04934",
    ),
)
def vae_iaf(
    event_shape: Sequence[int],
    *,
    num_layers: int = 4,
    flow_hidden: Sequence[int] = (320,),
    num_features: int = 64,
    latent_dim: int = 64,
    hidden: Sequence[int] = (300, 300),
    likelihood: Any = "bernoulli",
    warmup_steps: int = 0,
    learning_rate: float = 5e-4,
    batch_size: int = 100,
) -> Composition:
    """VAE with an inverse autoregressive flow: the first choice of a flow as posterior.

    Defaults are those of the comparison of flows by van den Berg et al. (2018): 64 latents, four layers of one masked
    network of 320 units, Adamax at 5e-4, batches of 100. Its encoder and decoder are gated convolutional networks; the
    widths here are ours. It weighs the KL from 0 to 1 in the first 100 epochs: ``warmup_steps`` does.

    :param event_shape: shape of one datum.
    :param num_layers: layers of the flow.
    :param flow_hidden: hidden widths of each layer's masked network.
    :param num_features: length of h(x), which the flow sees.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param warmup_steps: training steps in which the KL's weight rises from 0 to 1; 0 for none.
    :param learning_rate: of Adamax.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: D. P. Kingma, T. Salimans, R. Jozefowicz et al. (2016), arXiv:1606.04934; defaults: R. van den Berg,
    L. Hasenclever, J. M. Tomczak and M. Welling (2018), arXiv:1803.05649.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.vae_iaf((8, 8), latent_dim=2, num_layers=1, hidden=(16,)).parts["guide"]
        'AffineAutoregressive, ElementwiseAffine; encoder MLP 64-16-68, ReLU'
    """
    return _flow_vae(
        event_shape, "affine_autoregressive", {"hidden": tuple(flow_hidden)}, num_layers, num_features, warmup_steps,
        learning_rate, batch_size, latent_dim, hidden, likelihood,
    )  # fmt: skip


@recipe(
    "vae_planar",
    title="VAE with planar flows as posterior",
    equation="L = E_q[log p(x, z) - log q(z|x)],  z = μ(x) + σ(x) f(ε; h(x)),  layers y = ε + u tanh(wᵀε + b)",
    citation=Citation("D. J. Rezende, S. Mohamed", "Variational Inference with Normalizing Flows", 2015, "1505.05770"),
)
def vae_planar(
    event_shape: Sequence[int],
    *,
    num_layers: int = 10,
    num_features: int = 64,
    latent_dim: int = 40,
    hidden: Sequence[int] = (400, 400),
    likelihood: Any = "bernoulli",
    warmup_steps: int = 0,
    learning_rate: float = 5e-4,
    batch_size: int = 100,
) -> Composition:
    """VAE with planar flows: the first flow as posterior, cheap and weak.

    From the paper are 40 latents, ten layers (it has up to 80), widths of 400 and batches of 100; Adamax at 5e-4 is of
    van den Berg et al. (2018), in place of RMSprop. It weighs the likelihood from 0.01 to 1 in the first 10 000 steps;
    ``warmup_steps`` weighs the KL.

    :param event_shape: shape of one datum.
    :param num_layers: layers of the flow.
    :param num_features: length of h(x), which gives the parameters of the layers.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param warmup_steps: training steps in which the KL's weight rises from 0 to 1; 0 for none.
    :param learning_rate: of Adamax.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: D. J. Rezende and S. Mohamed (2015), arXiv:1505.05770.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.vae_planar((8, 8), num_layers=2, hidden=(16,)).hyperparameters["latent_dim"]
        40
    """
    return _flow_vae(
        event_shape, "planar", {}, num_layers, num_features, warmup_steps,
        learning_rate, batch_size, latent_dim, hidden, likelihood,
    )  # fmt: skip


@recipe(
    "vae_sylvester",
    title="VAE with Sylvester flows as posterior",
    equation="L = E_q[log p(x, z) - log q(z|x)],  z = μ(x) + σ(x) f(ε; h(x)),  layers y = ε + Q R tanh(R̃ Qᵀε + b)",
    citation=Citation(
        "R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling",
        "Sylvester Normalizing Flows for Variational Inference",
        2018,
        "1803.05649",
    ),
)
def vae_sylvester(
    event_shape: Sequence[int],
    *,
    num_layers: int = 4,
    num_units: int = 8,
    num_reflections: int = 8,
    num_features: int = 256,
    latent_dim: int = 64,
    hidden: Sequence[int] = (300, 300),
    likelihood: Any = "bernoulli",
    warmup_steps: int = 0,
    learning_rate: float = 5e-4,
    batch_size: int = 100,
) -> Composition:
    """VAE with Sylvester flows, in the Householder form: planar layers with several units.

    Defaults are those of the authors' code: 64 latents, four layers, eight reflections, 256 features, Adamax at 5e-4,
    batches of 100. The best rows of the paper have 16 layers and more units. Its encoder and decoder are gated
    convolutional networks; the widths here and the eight units are ours. It weighs the KL from 0 to 1 in the first 100
    epochs: ``warmup_steps`` does.

    :param event_shape: shape of one datum.
    :param num_layers: layers of the flow.
    :param num_units: hidden units of a layer, at most the number of latents.
    :param num_reflections: Householder reflections whose product is Q.
    :param num_features: length of h(x), which gives the parameters of the layers.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param warmup_steps: training steps in which the KL's weight rises from 0 to 1; 0 for none.
    :param learning_rate: of Adamax.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: R. van den Berg, L. Hasenclever, J. M. Tomczak and M. Welling (2018), arXiv:1803.05649.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.vae_sylvester((8, 8), latent_dim=4, num_units=2, hidden=(16,)).event_shape
        (8, 8)
    """
    options = {"num_units": num_units, "num_reflections": num_reflections}
    return _flow_vae(
        event_shape, "sylvester", options, num_layers, num_features, warmup_steps,
        learning_rate, batch_size, latent_dim, hidden, likelihood,
    )  # fmt: skip


@recipe(
    "vae_spline",
    title="VAE with a neural spline flow as posterior",
    equation="L = E_q[log p(x, z) - log q(z|x)],  z = μ(x) + σ(x) f(ε; h(x)),  f of rational-quadratic splines",
    citation=Citation("C. Durkan, A. Bekasov, I. Murray, G. Papamakarios", "Neural Spline Flows", 2019, "1906.04032"),
)
def vae_spline(
    event_shape: Sequence[int],
    *,
    num_layers: int = 4,
    num_bins: int = 8,
    flow_hidden: Sequence[int] = (128,),
    num_features: int = 64,
    latent_dim: int = 32,
    hidden: Sequence[int] = (300, 300),
    likelihood: Any = "bernoulli",
    warmup_steps: int = 0,
    learning_rate: float = 5e-4,
    batch_size: int = 100,
) -> Composition:
    """VAE with an autoregressive neural spline flow as posterior.

    From the paper are 32 latents, 8 bins and the learning rate 5e-4; it has a flow as prior too, and convolutional
    networks. The other numbers are ours.

    :param event_shape: shape of one datum.
    :param num_layers: layers of the flow.
    :param num_bins: bins of each spline.
    :param flow_hidden: hidden widths of each layer's masked network.
    :param num_features: length of h(x), which the flow sees.
    :param latent_dim: number of latents.
    :param hidden: hidden widths of the encoder, and in reverse of the decoder.
    :param likelihood: ``"bernoulli"``, ``"gaussian"`` or another one of :class:`~pyro_dgm.models.VAE`.
    :param warmup_steps: training steps in which the KL's weight rises from 0 to 1; 0 for none.
    :param learning_rate: of Adamax.
    :param batch_size: data a batch.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: C. Durkan, A. Bekasov, I. Murray and G. Papamakarios (2019), arXiv:1906.04032.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.vae_spline((8, 8), latent_dim=2, hidden=(16,), num_bins=4).hyperparameters["num_bins"]
        4
    """
    options = {"num_bins": num_bins, "hidden": tuple(flow_hidden)}
    return _flow_vae(
        event_shape, "spline_autoregressive", options, num_layers, num_features, warmup_steps,
        learning_rate, batch_size, latent_dim, hidden, likelihood,
    )  # fmt: skip
