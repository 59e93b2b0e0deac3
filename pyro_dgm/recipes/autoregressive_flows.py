"""Autoregressive flows, fast in one direction: MAF, IAF, neural autoregressive and transformer flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pyro_dgm.distributions.transforms import Compose, ElementwiseAffine, TransformerAutoregressive
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam, flow

__all__ = ["iaf_density", "maf", "naf", "tarflow"]


@recipe(
    "maf",
    title="Masked autoregressive flow",
    equation="log p(x) = log N(u; 0, I) - Σ s_i(x_<i),  u_i = (x_i - b_i(x_<i)) exp(-s_i(x_<i)) in each layer",
    citation=Citation(
        "G. Papamakarios, T. Pavlakou, I. Murray",
        "Masked Autoregressive Flow for Density Estimation",
        2017,
        "1705.07057",
    ),
)
def maf(
    event_shape: Sequence[int],
    *,
    num_layers: int = 5,
    hidden: Sequence[int] = (100, 100),
    activation: str = "ReLU",
    learning_rate: float = 1e-4,
    batch_size: int = 100,
    weight_decay: float = 1e-6,
) -> Composition:
    """Masked autoregressive flow: densities in one pass, samples in as many passes as there are elements.

    Defaults are those of the paper's MAF (5) for the data sets POWER and GAS: five layers, two hidden layers of 100
    units, Adam at 1e-4, batches of 100, weight decay 1e-6. Its batch normalisation is left out, and its reversals
    between layers are fixed permutations here.

    :param event_shape: shape of one datum; flattened.
    :param num_layers: autoregressive layers.
    :param hidden: widths of the hidden layers.
    :param activation: module between them, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :param weight_decay: of Adam.
    :raises ValueError: for sizes out of range.

    Source: G. Papamakarios, T. Pavlakou and I. Murray (2017), arXiv:1705.07057.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.maf((4,), num_layers=2).parts["transform"]
        '2 AffineAutoregressive (inverse), Permutation, ElementwiseAffine'
    """
    optimizer = adam(learning_rate, weight_decay=weight_decay)
    return flow(
        event_shape, "affine_autoregressive", optimizer, batch_size,
        num_layers=num_layers, hidden=hidden, activation=activation,
    )  # fmt: skip


@recipe(
    "iaf_density",
    title="Inverse autoregressive flow, as a density",
    equation="log p(x) = log N(u; 0, I) - Σ s_i(u_<i),  x_i = u_i exp(s_i(u_<i)) + b_i(u_<i) in each layer",
    citation=Citation(
        "D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling",
        "Improving Variational Inference with Inverse Autoregressive Flow",
        2016,
        "1606.04934",
    ),
)
def iaf_density(
    event_shape: Sequence[int],
    *,
    num_layers: int = 5,
    hidden: Sequence[int] = (100, 100),
    activation: str = "ReLU",
    learning_rate: float = 1e-4,
    batch_size: int = 100,
    weight_decay: float = 1e-6,
) -> Composition:
    """Inverse autoregressive flow: samples in one pass, densities of data in as many passes as there are elements.

    Take it where samples must be fast, and the data have few elements: each training step pays for the slow direction.
    It is :func:`~pyro_dgm.recipes.maf` with the directions exchanged, and has its defaults. The paper uses the flow in
    a guide, see :func:`~pyro_dgm.recipes.vae_iaf`.

    :param event_shape: shape of one datum; flattened.
    :param num_layers: autoregressive layers.
    :param hidden: widths of the hidden layers.
    :param activation: module between them, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :param weight_decay: of Adam.
    :raises ValueError: for sizes out of range.

    Source: D. P. Kingma, T. Salimans, R. Jozefowicz et al. (2016), arXiv:1606.04934; as a density, G. Papamakarios,
    T. Pavlakou and I. Murray (2017), arXiv:1705.07057.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.iaf_density((4,), num_layers=2).parts["transform"]
        '2 AffineAutoregressive, Permutation, ElementwiseAffine'
    """
    optimizer = adam(learning_rate, weight_decay=weight_decay)
    return flow(
        event_shape, "affine_autoregressive", optimizer, batch_size,
        num_layers=num_layers, hidden=hidden, activation=activation, fast="forward",
    )  # fmt: skip


@recipe(
    "naf",
    title="Neural autoregressive flow, deep sigmoidal",
    equation="log p(x) = log N(u; 0, I) + Σ log ∂u_i/∂x_i,  u_i = logit Σ_j w_j σ(a_j x_i + b_j),  w, a, b of x_<i",
    citation=Citation(
        "C.-W. Huang, D. Krueger, A. Lacoste, A. Courville", "Neural Autoregressive Flows", 2018, "1804.00779"
    ),
)
def naf(
    event_shape: Sequence[int],
    *,
    num_layers: int = 5,
    hidden: Sequence[int] = (100,),
    num_units: int = 16,
    activation: str = "ELU",
    learning_rate: float = 1e-4,
    batch_size: int = 100,
    clip_norm: float = 5.0,
) -> Composition:
    """Neural autoregressive flow: each element goes through a monotonic network. Samples invert it numerically.

    Defaults are those of the authors' code for densities: five layers, one hidden layer of 100 units with exponential
    linear units, 16 sigmoids, Adam at 1e-4, batches of 100, gradients clipped to a norm of 5.

    :param event_shape: shape of one datum; flattened.
    :param num_layers: autoregressive layers.
    :param hidden: widths of the hidden layers.
    :param num_units: sigmoids of each element's monotonic network.
    :param activation: module between hidden layers, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :param clip_norm: largest norm of the gradient.
    :raises ValueError: for sizes out of range.

    Source: C.-W. Huang, D. Krueger, A. Lacoste and A. Courville (2018), arXiv:1804.00779.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.naf((4,), num_layers=2, num_units=4).parts["transform"]
        '2 NeuralAutoregressive (inverse), Permutation, ElementwiseAffine'
    """
    return flow(
        event_shape, "neural_autoregressive", adam(learning_rate), batch_size, num_layers=num_layers, hidden=hidden,
        activation=activation, clip_norm=clip_norm, options={"num_units": check_count("num_units", num_units)},
    )  # fmt: skip


@recipe(
    "tarflow",
    title="Transformer autoregressive flow, TarFlow",
    equation="log p(x) = log N(u; 0, I) - Σ s,  u_t = (x_t - b(x_<t)) exp(-s(x_<t)),  b, s of a causal transformer",
    citation=Citation(
        "S. Zhai, R. Zhang, P. Nakkiran, D. Berthelot, J. Gu, H. Zheng, T. Chen, M. A. Bautista, N. Jaitly, "
        "J. Susskind",
        "Normalizing Flows are Capable Generative Models",
        2024,
        "2412.06329",
    ),
)
def tarflow(
    event_shape: Sequence[int],
    *,
    num_layers: int = 8,
    patch_size: int = 1,
    width: int = 64,
    num_heads: int = 4,
    transformer_layers: int = 2,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    weight_decay: float = 1e-4,
) -> Composition:
    """TarFlow: autoregressive blocks over patches, each a causal transformer, in alternating order.

    Vectors are cut into blocks of ``patch_size`` elements, images into square patches. Samples cost a step a patch.

    Eight blocks, AdamW at 1e-4 with betas 0.9 and 0.95 and weight decay 1e-4 are those of the paper. Its transformers
    are far larger, with eight layers of width 768 and more on patches of side 2 or 4; the defaults here run on a CPU.
    The paper adds noise to images (``transform=`` of :func:`pyro_dgm.fit` can), and anneals the learning rate.

    :param event_shape: shape of one datum: a vector, ``(height, width)`` or ``(channels, height, width)``.
    :param num_layers: autoregressive blocks.
    :param patch_size: elements in a block of a vector, or side of a patch.
    :param width: width of the transformers, a multiple of ``num_heads``.
    :param num_heads: heads of attention.
    :param transformer_layers: layers of each transformer.
    :param learning_rate: of AdamW.
    :param batch_size: data a batch.
    :param weight_decay: of AdamW.
    :raises ValueError: for sizes out of range, or that do not divide one another.

    Source: S. Zhai, R. Zhang, P. Nakkiran et al. (2024), arXiv:2412.06329.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.tarflow((4, 4), num_layers=2, width=8, patch_size=2).parts["transform"]
        '2 TransformerAutoregressive, ElementwiseAffine'
    """
    check_count("num_layers", num_layers)

    def blocks(shape: Any, context_dim: int = 0) -> Compose:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return Compose(
            [
                *(
                    TransformerAutoregressive(
                        shape, patch_size=patch_size, width=width, num_heads=num_heads, num_layers=transformer_layers,
                        context_dim=context_dim, reverse=bool(i % 2),
                    )
                    for i in range(num_layers)
                ),
                ElementwiseAffine(shape, context_dim),
            ]
        )  # fmt: skip

    optimizer = adam(learning_rate, kind=torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=weight_decay)
    return flow(event_shape, blocks, optimizer, batch_size)
