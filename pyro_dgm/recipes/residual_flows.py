"""Flows of small changes: planar, radial, Sylvester, residual networks, differential equations."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam, flow

__all__ = ["ffjord", "planar", "radial", "residual", "sylvester"]

_REZENDE = Citation("D. J. Rezende, S. Mohamed", "Variational Inference with Normalizing Flows", 2015, "1505.05770")


@recipe(
    "planar",
    title="Planar flow",
    equation="log p(x) = log N(f(x); 0, I) + Σ log |1 + uᵀw (1 - tanh²(wᵀx + b))|,  layers f(x) = x + u tanh(wᵀx + b)",
    citation=_REZENDE,
)
def planar(
    event_shape: Sequence[int], *, num_layers: int = 32, learning_rate: float = 1e-3, batch_size: int = 100
) -> Composition:
    """Planar flow: many cheap layers, each a fold along a hyperplane.

    The layers go from data to noise, the direction in closed form, so the density is exact and cheap; samples invert
    them numerically. A weak density estimator: take it to reproduce results, or as the simplest example.

    The paper uses the flow in a guide (see :func:`~pyro_dgm.recipes.vae_planar`) with up to 80 layers, batches of 100
    and RMSprop. The number of layers here is the largest of its figures on the plane; Adam and its learning rate are
    ours.

    :param event_shape: shape of one datum; flattened.
    :param num_layers: layers.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for sizes out of range.

    Source: D. J. Rezende and S. Mohamed (2015), arXiv:1505.05770.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.planar((2,), num_layers=4).parts["transform"]
        '4 Planar (inverse), 3 Permutation, ElementwiseAffine'
    """
    return flow(event_shape, "planar", adam(learning_rate), batch_size, num_layers=num_layers)


@recipe(
    "radial",
    title="Radial flow",
    equation="log p(x) = log N(f⁻¹(x); 0, I) + log |det ∂f⁻¹/∂x|,  layers f(z) = z + β (z - z₀) / (α + |z - z₀|)",
    citation=_REZENDE,
)
def radial(
    event_shape: Sequence[int], *, num_layers: int = 32, learning_rate: float = 1e-3, batch_size: int = 100
) -> Composition:
    """Radial flow: many cheap layers, each of which moves mass to a point or away from it.

    Both directions are in closed form. A weak density estimator: take it to reproduce results.

    The paper uses the flow in a guide, with batches of 100 and RMSprop. The number of layers here is the largest of
    its figures on the plane; Adam and its learning rate are ours.

    :param event_shape: shape of one datum; flattened.
    :param num_layers: layers.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for sizes out of range.

    Source: D. J. Rezende and S. Mohamed (2015), arXiv:1505.05770.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.radial((2,), num_layers=4).parts["transform"]
        '4 Radial, 3 Permutation, ElementwiseAffine'
    """
    return flow(event_shape, "radial", adam(learning_rate), batch_size, num_layers=num_layers)


@recipe(
    "sylvester",
    title="Sylvester flow",
    equation="log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|,  layers f(x) = x + Q R tanh(R̃ Qᵀx + b)",
    citation=Citation(
        "R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling",
        "Sylvester Normalizing Flows for Variational Inference",
        2018,
        "1803.05649",
    ),
)
def sylvester(
    event_shape: Sequence[int],
    *,
    num_layers: int = 16,
    num_units: int | None = None,
    num_reflections: int | None = None,
    learning_rate: float = 5e-4,
    batch_size: int = 100,
) -> Composition:
    """Sylvester flow: planar layers with several units.

    The layers go from data to noise, the direction in closed form, so the density is exact and cheap; samples invert
    them numerically, one equation a unit.

    The paper uses the flow in a guide, see :func:`~pyro_dgm.recipes.vae_sylvester`; from there are 16 layers, batches
    of 100 and the learning rate 5e-4.

    :param event_shape: shape of one datum; flattened.
    :param num_layers: layers.
    :param num_units: hidden units of a layer, at most the number of elements; ``None`` for as many.
    :param num_reflections: Householder reflections whose product is Q; ``None`` for as many as units.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for sizes out of range.

    Source: R. van den Berg, L. Hasenclever, J. M. Tomczak and M. Welling (2018), arXiv:1803.05649.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.sylvester((4,), num_layers=2, num_units=2).parts["transform"]
        '2 Sylvester (inverse), Permutation, ElementwiseAffine'
    """
    return flow(
        event_shape, "sylvester", adam(learning_rate), batch_size, num_layers=num_layers,
        options={"num_units": num_units, "num_reflections": num_reflections},
    )  # fmt: skip


@recipe(
    "residual",
    title="Residual flow",
    equation="log p(x) = log N(f(x); 0, I) + log det(I + J_g),  layers f(x) = x + g(x) with Lip(g) < 1",
    citation=Citation(
        "R. T. Q. Chen, J. Behrmann, D. Duvenaud, J.-H. Jacobsen",
        "Residual Flows for Invertible Generative Modeling",
        2019,
        "1906.02735",
    ),
)
def residual(
    event_shape: Sequence[int],
    *,
    num_layers: int = 10,
    hidden: Sequence[int] = (128, 128, 128, 128),
    lipschitz: float = 0.9,
    log_det: str = "exact",
    learning_rate: float = 1e-3,
    batch_size: int = 500,
    weight_decay: float = 1e-5,
) -> Composition:
    """Residual flow: invertible residual networks.

    The layers go from data to noise; samples come by fixed-point iteration. With ``log_det="exact"`` the determinant
    is computed, for up to about a hundred elements; with ``"roulette"`` it is estimated without bias, as in the paper,
    and a training step cannot be recorded as a graph.

    Defaults are those of the authors' code on the plane: four hidden layers of 128 units, Lipschitz constant 0.9, Adam
    at 1e-3, batches of 500, weight decay 1e-5. It has 100 layers; ten here spare a CPU.

    :param event_shape: shape of one datum; flattened.
    :param num_layers: residual blocks.
    :param hidden: widths of the hidden layers.
    :param lipschitz: bound of the Lipschitz constant of each block's network, below one.
    :param log_det: ``"exact"`` or ``"roulette"``.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :param weight_decay: of Adam.
    :raises ValueError: for numbers out of range.

    Source: R. T. Q. Chen, J. Behrmann, D. Duvenaud and J.-H. Jacobsen (2019), arXiv:1906.02735; J. Behrmann,
    W. Grathwohl, R. T. Q. Chen, D. Duvenaud and J.-H. Jacobsen (2019), arXiv:1811.00995.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.residual((4,), num_layers=2, hidden=(8,)).parts["transform"]
        '2 Residual (inverse), Permutation, ElementwiseAffine'
    """
    return flow(
        event_shape, "residual", adam(learning_rate, weight_decay=weight_decay), batch_size,
        num_layers=num_layers, hidden=hidden, options={"lipschitz": lipschitz, "log_det": log_det},
    )  # fmt: skip


@recipe(
    "ffjord",
    title="FFJORD, a continuous flow",
    equation="log p(x) = log N(z(0); 0, I) - ∫₀¹ tr(∂v/∂z) dt,  dz/dt = v(z, t), z(1) = x",
    citation=Citation(
        "W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud",
        "FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models",
        2019,
        "1810.01367",
    ),
)
def ffjord(
    event_shape: Sequence[int],
    *,
    num_layers: int = 1,
    hidden: Sequence[int] = (64, 64, 64),
    num_steps: int = 16,
    trace: str = "exact",
    activation: str = "Tanh",
    learning_rate: float = 1e-3,
    batch_size: int = 512,
    weight_decay: float = 1e-5,
) -> Composition:
    """FFJORD: noise moves to data along a learned velocity. Both directions cost the same.

    Defaults are those of the authors' experiments on the plane: one flow, three hidden layers of 64 units, hyperbolic
    tangents, Adam at 1e-3, weight decay 1e-5. Here a solver of fixed steps stands for their adaptive one
    (:class:`~pyro_dgm.distributions.transforms.Continuous` takes another), and the exact trace for their estimate. The
    batch size is ours.

    :param event_shape: shape of one datum; flattened.
    :param num_layers: flows one after another.
    :param hidden: widths of the hidden layers.
    :param num_steps: steps of the solver.
    :param trace: ``"exact"``, or ``"hutchinson"`` for an unbiased estimate.
    :param activation: module between hidden layers, smooth: a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :param weight_decay: of Adam.
    :raises ValueError: for numbers out of range.

    Source: W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever and D. Duvenaud (2019), arXiv:1810.01367.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.ffjord((4,), hidden=(8,)).parts["transform"]
        'Continuous, ElementwiseAffine'
    """
    return flow(
        event_shape, "continuous", adam(learning_rate, weight_decay=weight_decay), batch_size, num_layers=num_layers,
        hidden=hidden, activation=activation, options={"num_steps": num_steps, "trace": trace},
    )  # fmt: skip
