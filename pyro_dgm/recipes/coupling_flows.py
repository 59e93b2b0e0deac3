"""Flows of coupling layers, fast in both directions: NICE, Real NVP, neural spline flows."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_dgm.ops.arguments import check_count
from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam, at_least_two, flow

__all__ = ["nice", "nsf", "real_nvp"]


@recipe(
    "nice",
    title="NICE, non-linear independent components estimation",
    equation="log p(x) = log N(f⁻¹(x); 0, I) - Σ s,  f = scale exp(s) after additive couplings: y_B = x_B + b(x_A)",
    citation=Citation(
        "L. Dinh, D. Krueger, Y. Bengio", "NICE: Non-linear Independent Components Estimation", 2015, "1410.8516"
    ),
)
def nice(
    event_shape: Sequence[int],
    *,
    num_layers: int = 4,
    hidden: Sequence[int] = (1000, 1000, 1000, 1000, 1000),
    activation: str = "ReLU",
    learning_rate: float = 1e-3,
    batch_size: int = 100,
) -> Composition:
    """NICE: couplings that only shift, and one scale for each element at the end.

    The first flow of couplings, and the cheapest. It needs more layers than the later ones for the same density.

    Defaults are those of the paper for MNIST: four couplings, five hidden layers of 1 000 rectified units, Adam at
    1e-3 with betas 0.9 and 0.99 and epsilon 1e-4. Its partition into even and odd elements is here one into halves
    after fixed permutations, its logistic base a normal one (as in its experiment on faces). The batch size is ours.

    :param event_shape: shape of one datum, of at least two elements; flattened.
    :param num_layers: couplings.
    :param hidden: widths of the hidden layers.
    :param activation: module between them, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for data of one element, or sizes out of range.

    Source: L. Dinh, D. Krueger and Y. Bengio (2015), arXiv:1410.8516.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.nice((4,), hidden=(8,))
        Recipe('nice', event_shape=(4,))
    """
    at_least_two("nice", event_shape)
    optimizer = adam(learning_rate, betas=(0.9, 0.99), eps=1e-4)
    return flow(
        event_shape, "additive_coupling", optimizer, batch_size,
        num_layers=num_layers, hidden=hidden, activation=activation,
    )  # fmt: skip


@recipe(
    "real_nvp",
    title="Real NVP, real-valued non-volume preserving flow",
    equation="log p(x) = log N(f⁻¹(x); 0, I) + log |det ∂f⁻¹/∂x|,  couplings y_B = x_B exp(s(x_A)) + b(x_A)",
    citation=Citation("L. Dinh, J. Sohl-Dickstein, S. Bengio", "Density estimation using Real NVP", 2017, "1605.08803"),
)
def real_nvp(
    event_shape: Sequence[int],
    *,
    num_layers: int = 10,
    hidden: Sequence[int] = (100, 100),
    activation: str = "ReLU",
    learning_rate: float = 1e-4,
    batch_size: int = 100,
    weight_decay: float = 1e-6,
) -> Composition:
    """Real NVP: affine couplings, for densities and fast samples.

    Defaults are those of the experiments on vectors by Papamakarios, Pavlakou and Murray (2017): ten couplings, two
    hidden layers of 100 units, Adam at 1e-4, batches of 100, weight decay 1e-6. Their batch normalisation is left
    out; scale and shift are outputs of one rectified network.

    :param event_shape: shape of one datum, of at least two elements; flattened.
    :param num_layers: couplings.
    :param hidden: widths of the hidden layers.
    :param activation: module between them, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :param weight_decay: of Adam.
    :raises ValueError: for data of one element, or sizes out of range.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio (2017), arXiv:1605.08803; defaults: G. Papamakarios, T. Pavlakou
    and I. Murray (2017), arXiv:1705.07057.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.real_nvp((4,), num_layers=2).parts["transform"]
        '2 AffineCoupling, Permutation, ElementwiseAffine'
    """
    at_least_two("real_nvp", event_shape)
    optimizer = adam(learning_rate, weight_decay=weight_decay)
    return flow(
        event_shape, "affine_coupling", optimizer, batch_size,
        num_layers=num_layers, hidden=hidden, activation=activation,
    )  # fmt: skip


@recipe(
    "nsf",
    title="Neural spline flow, RQ-NSF",
    equation="log p(x) = log N(f⁻¹(x); 0, I) + log |det ∂f⁻¹/∂x|,  y_B = spline(x_B; knots(x_A)), rational-quadratic",
    citation=Citation("C. Durkan, A. Bekasov, I. Murray, G. Papamakarios", "Neural Spline Flows", 2019, "1906.04032"),
)
def nsf(
    event_shape: Sequence[int],
    *,
    num_layers: int = 10,
    hidden: Sequence[int] = (256, 256),
    num_bins: int = 8,
    bound: float = 3.0,
    autoregressive: bool = False,
    activation: str = "ReLU",
    learning_rate: float = 5e-4,
    batch_size: int = 512,
    clip_norm: float = 5.0,
) -> Composition:
    """Neural spline flow: couplings by rational-quadratic splines. The first choice for vectors of real numbers.

    Defaults are those of the paper for the data set POWER: ten steps, each a spline of 8 bins on [-3, 3], a
    permutation and a learned linear map by its LU factors; 256 hidden units; Adam at 5e-4, batches of 512, gradients
    clipped to a norm of 5. The networks are plain, where the paper's have residual blocks and dropout. It anneals the
    learning rate to zero along a cosine: give ``lr_scheduler=`` to :func:`pyro_dgm.fit` for that.

    The splines act on ``[-bound, bound]``: standardise the data.

    :param event_shape: shape of one datum; flattened. Of one element with ``autoregressive`` only.
    :param num_layers: steps.
    :param hidden: widths of the hidden layers.
    :param num_bins: bins of each spline.
    :param bound: half the width of the interval on which splines act.
    :param autoregressive: RQ-NSF (AR) instead of RQ-NSF (C): a better fit, and samples that cost a pass an element.
    :param activation: module between hidden layers, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :param clip_norm: largest norm of the gradient.
    :raises ValueError: for data of one element without ``autoregressive``, or numbers out of range.

    Source: C. Durkan, A. Bekasov, I. Murray and G. Papamakarios (2019), arXiv:1906.04032.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.nsf((4,), num_layers=2, hidden=(16,)).parts["transform"]
        '2 SplineCoupling, Permutation, LULinear, ElementwiseAffine'
    """
    if not autoregressive:
        at_least_two("nsf", event_shape, ": take autoregressive=True")
    check_count("num_bins", num_bins)
    return flow(
        event_shape, "spline_autoregressive" if autoregressive else "spline_coupling", adam(learning_rate), batch_size,
        num_layers=num_layers, hidden=hidden, activation=activation, clip_norm=clip_norm,
        options={"num_bins": num_bins, "bound": bound}, mixing="lu_linear",
    )  # fmt: skip
