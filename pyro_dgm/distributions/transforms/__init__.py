"""Bijections for normalizing flows: value and log-determinant together, in both directions, with or without context."""

from pyro_dgm.distributions.transforms.affine import ElementwiseAffine
from pyro_dgm.distributions.transforms.autoregressive import AffineAutoregressive, Autoregressive, SplineAutoregressive
from pyro_dgm.distributions.transforms.base import Bijection, Conditioned, Inverse
from pyro_dgm.distributions.transforms.compose import Compose
from pyro_dgm.distributions.transforms.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    CircularSplineCoupling,
    Coupling,
    SplineCoupling,
)
from pyro_dgm.distributions.transforms.elementwise import (
    AdditiveFamily,
    AffineFamily,
    CircularSplineFamily,
    ElementwiseFamily,
    SplineFamily,
)
from pyro_dgm.distributions.transforms.permutation import Permutation
from pyro_dgm.distributions.transforms.reshape import Reshape
from pyro_dgm.distributions.transforms.spline import CircularSpline, Elementwise, Spline
from pyro_dgm.distributions.transforms.wrapped import Wrapped, as_bijection

#: every transform that can be made from sizes alone, by name
TRANSFORMS: dict[str, type[Bijection]] = {
    "additive_coupling": AdditiveCoupling,
    "affine_autoregressive": AffineAutoregressive,
    "affine_coupling": AffineCoupling,
    "circular_spline": CircularSpline,
    "circular_spline_coupling": CircularSplineCoupling,
    "elementwise_affine": ElementwiseAffine,
    "permutation": Permutation,
    "spline": Spline,
    "spline_autoregressive": SplineAutoregressive,
    "spline_coupling": SplineCoupling,
}

__all__ = [
    "TRANSFORMS",
    "AdditiveCoupling",
    "AdditiveFamily",
    "AffineAutoregressive",
    "AffineCoupling",
    "AffineFamily",
    "Autoregressive",
    "Bijection",
    "CircularSpline",
    "CircularSplineCoupling",
    "CircularSplineFamily",
    "Compose",
    "Conditioned",
    "Coupling",
    "Elementwise",
    "ElementwiseAffine",
    "ElementwiseFamily",
    "Inverse",
    "Permutation",
    "Reshape",
    "Spline",
    "SplineAutoregressive",
    "SplineCoupling",
    "SplineFamily",
    "Wrapped",
    "as_bijection",
]
