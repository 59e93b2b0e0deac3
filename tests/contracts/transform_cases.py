"""How the contract test makes each transform, and what it may expect of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pyro_dgm.distributions import transforms as t


@dataclass(frozen=True)
class Case:
    """A transform under test.

    :param make: gives the transform; takes ``context_dim`` as a keyword where ``conditional``.
    :param event_shape: of its input.
    :param conditional: whether it takes a context.
    :param inverse: tolerance of the inverse in float64: 1e-8 for a closed form, 1e-6 for a numerical one.
    :param draw: values of the input, where the transform is not on the whole real space.
    :param extremes: largest magnitude for which values in float32 must be finite.
    :param spread: standard deviation of the noise that is added to the parameters, so that nothing is at its start.
    """

    make: Callable[..., Any]
    event_shape: tuple[int, ...] = (3,)
    conditional: bool = True
    inverse: float = 1e-8
    draw: Callable[[torch.Size], torch.Tensor] | None = None
    extremes: float = 1e6
    spread: float = 0.3


def angles(shape: torch.Size) -> torch.Tensor:
    """Uniform on the circle."""
    return (torch.rand(shape) * 2 - 1) * math.pi


def image_coupling(event_shape: tuple[int, ...], family: Any, **options: Any) -> t.ImageCoupling:
    """A small layer, for images."""
    return t.ImageCoupling(event_shape, family, hidden_channels=4, num_blocks=1, **options)


#: by the name in ``TRANSFORMS``, with a suffix for a second case
CASES: dict[str, Case] = {
    "actnorm": Case(lambda **k: t.ActNorm(3, **k)),
    "actnorm-image": Case(lambda **k: t.ActNorm((2, 2, 2), **k), event_shape=(2, 2, 2)),
    "additive_coupling": Case(lambda **k: t.AdditiveCoupling(3, hidden=(8,), **k)),
    "affine_autoregressive": Case(lambda **k: t.AffineAutoregressive(3, hidden=(8, 8), **k)),
    "affine_autoregressive-residual": Case(
        lambda **k: t.AffineAutoregressive(3, hidden=(8, 8), residual=True, order=(2, 0, 1), **k)
    ),
    "affine_autoregressive-inverse": Case(lambda **k: t.AffineAutoregressive(3, hidden=(8,), **k).inv),
    "affine_coupling": Case(lambda **k: t.AffineCoupling(3, hidden=(8,), **k)),
    "bernstein": Case(lambda **k: t.Bernstein(3, degree=4, hidden=(8,), **k), inverse=1e-6),
    "bernstein-elementwise": Case(lambda **k: t.Elementwise((2, 2), t.BernsteinFamily(3), **k), (2, 2), inverse=1e-6),
    "circular_spline": Case(lambda **k: t.CircularSpline(3, num_bins=4, **k), draw=angles),
    "circular_spline-autoregressive": Case(
        lambda **k: t.Autoregressive(3, t.CircularSplineFamily(4), hidden=(8,), **k), draw=angles
    ),
    "circular_spline_coupling": Case(
        lambda **k: t.CircularSplineCoupling(3, num_bins=4, hidden=(8,), **k), draw=angles
    ),
    "continuous": Case(lambda **k: t.Continuous(3, hidden=(8, 8), num_steps=24, **k), inverse=1e-6),
    "elementwise_affine": Case(lambda **k: t.ElementwiseAffine(3, **k)),
    "elementwise_affine-image": Case(lambda **k: t.ElementwiseAffine((2, 2), **k), event_shape=(2, 2)),
    "neural_autoregressive": Case(lambda **k: t.NeuralAutoregressive(3, num_units=4, hidden=(8,), **k), inverse=1e-6),
    "neural_autoregressive-deep": Case(
        lambda **k: t.NeuralAutoregressive(3, num_units=3, num_layers=2, hidden=(8,), **k), inverse=1e-6
    ),
    "permutation": Case(lambda: t.Permutation(3, (2, 0, 1)), conditional=False),
    "residual": Case(lambda **k: t.Residual(3, hidden=(8, 8), **k), inverse=1e-6),
    "spline": Case(lambda **k: t.Spline(3, num_bins=4, **k)),
    "spline-image": Case(lambda **k: t.Spline((2, 2), hidden=(4,) if k else (), **k), event_shape=(2, 2)),
    "spline_autoregressive": Case(lambda **k: t.SplineAutoregressive(3, num_bins=4, hidden=(8,), **k)),
    "spline_coupling": Case(lambda **k: t.SplineCoupling(3, num_bins=4, hidden=(8,), mask="alternate", **k)),
    "spline_coupling-flipped": Case(lambda **k: t.SplineCoupling(3, hidden=(8,), flip=True, **k)),
    "householder": Case(lambda **k: t.Householder(3, **k)),
    "image_coupling": Case(lambda **k: image_coupling((2, 4, 4), None, **k), event_shape=(2, 4, 4)),
    "image_coupling-additive": Case(
        lambda **k: image_coupling((3, 2, 2), t.AdditiveFamily(), flip=True, **k), event_shape=(3, 2, 2)
    ),
    "image_coupling-spline": Case(
        lambda **k: image_coupling((2, 4, 4), t.SplineFamily(4), **k), event_shape=(2, 4, 4), spread=0.1
    ),
    "image_coupling-checkerboard": Case(
        lambda **k: image_coupling((1, 4, 4), None, mask="checkerboard", **k), event_shape=(1, 4, 4)
    ),
    "invertible_conv1x1": Case(lambda **k: t.InvertibleConv1x1((3, 2, 2), **k), event_shape=(3, 2, 2)),
    "invertible_conv1x1-plain": Case(
        lambda **k: t.InvertibleConv1x1((3, 2, 2), parametrization="plain", **k), event_shape=(3, 2, 2), spread=0.1
    ),
    "lu_linear": Case(lambda **k: t.LULinear(3, **k)),
    "lu_linear-rotation": Case(lambda **k: t.LULinear(3, initial="rotation", **k)),
    "multiscale": Case(
        lambda **k: t.make_image_flow((2, 4, 4), num_levels=2, num_layers=1, hidden_channels=4, num_blocks=1, **k),
        event_shape=(32,),
        spread=0.1,
    ),
    "planar": Case(lambda **k: t.Planar(3, **k), inverse=1e-7),
    "planar-network": Case(lambda **k: t.Planar(3, **({"hidden": (4,)} if k else {}), **k), inverse=1e-7),
    "radial": Case(lambda **k: t.Radial(3, **k)),
    "sylvester": Case(lambda **k: t.Sylvester(4, num_units=2, **k), event_shape=(4,), inverse=1e-7),
    "squeeze": Case(lambda: t.Squeeze((2, 4, 4)), event_shape=(2, 4, 4), conditional=False),
    "sum_of_squares": Case(lambda **k: t.SumOfSquares(3, degree=2, hidden=(8,), **k), inverse=1e-6),
    "transformer_autoregressive": Case(
        lambda **k: t.TransformerAutoregressive(3, width=8, num_heads=2, num_layers=1, **k)
    ),
    "transformer_autoregressive-image": Case(
        lambda **k: t.TransformerAutoregressive(
            (2, 2, 4), patch_size=2, width=8, num_heads=2, num_layers=2, reverse=True, **k
        ),
        event_shape=(2, 2, 4),
    ),
}

#: those that are two-dimensional, for the integral over a grid; made with the same keywords
PLANE: dict[str, Callable[..., Any]] = {
    "actnorm": lambda **k: t.ActNorm(2, **k),
    "additive_coupling": lambda **k: t.AdditiveCoupling(2, hidden=(8,), **k),
    "affine_autoregressive": lambda **k: t.AffineAutoregressive(2, hidden=(8,), **k),
    "affine_coupling": lambda **k: t.AffineCoupling(2, hidden=(8,), **k),
    "bernstein": lambda **k: t.Bernstein(2, degree=4, hidden=(8,), **k).inv,
    "continuous": lambda **k: t.Continuous(2, hidden=(8,), num_steps=8, **k),
    "elementwise_affine": lambda **k: t.ElementwiseAffine(2, **k),
    "neural_autoregressive": lambda **k: t.NeuralAutoregressive(2, num_units=4, hidden=(8,), **k).inv,
    "permutation": lambda: t.Permutation(2),
    "residual": lambda **k: t.Residual(2, hidden=(8,), **k).inv,
    "spline": lambda **k: t.Spline(2, num_bins=4, **k),
    "spline_autoregressive": lambda **k: t.SplineAutoregressive(2, num_bins=4, hidden=(8,), **k),
    "spline_coupling": lambda **k: t.SplineCoupling(2, num_bins=4, hidden=(8,), **k),
    "householder": lambda **k: t.Householder(2, **k),
    "lu_linear": lambda **k: t.LULinear(2, **k),
    "planar": lambda **k: t.Planar(2, **k),
    "radial": lambda **k: t.Radial(2, **k),
    "sylvester": lambda **k: t.Sylvester(2, **k),
    "sum_of_squares": lambda **k: t.SumOfSquares(2, degree=2, hidden=(8,), **k).inv,
    "transformer_autoregressive": lambda **k: t.TransformerAutoregressive(2, width=8, num_heads=2, num_layers=1, **k),
}
