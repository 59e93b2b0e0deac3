"""Bijections for normalizing flows: value and log-determinant together, in both directions, with or without context."""

from pyro_dgm.distributions.transforms.actnorm import ActNorm
from pyro_dgm.distributions.transforms.affine import ElementwiseAffine
from pyro_dgm.distributions.transforms.autoregressive import AffineAutoregressive, Autoregressive, SplineAutoregressive
from pyro_dgm.distributions.transforms.base import Bijection, Conditioned, Inverse
from pyro_dgm.distributions.transforms.bernstein import Bernstein, BernsteinFamily
from pyro_dgm.distributions.transforms.compose import Compose
from pyro_dgm.distributions.transforms.continuous import Continuous
from pyro_dgm.distributions.transforms.coupling import AdditiveCoupling, AffineCoupling, Coupling
from pyro_dgm.distributions.transforms.elementwise import (
    AdditiveFamily,
    AffineFamily,
    CircularSplineFamily,
    ElementwiseFamily,
    SplineFamily,
)
from pyro_dgm.distributions.transforms.family_bijection import Elementwise
from pyro_dgm.distributions.transforms.householder import Householder
from pyro_dgm.distributions.transforms.image_coupling import ImageCoupling
from pyro_dgm.distributions.transforms.invertible_conv import InvertibleConv1x1
from pyro_dgm.distributions.transforms.linear_tails import LinearTails
from pyro_dgm.distributions.transforms.location_scale import LocationScale
from pyro_dgm.distributions.transforms.lu_linear import LULinear
from pyro_dgm.distributions.transforms.make import make_flow
from pyro_dgm.distributions.transforms.make_image import make_image_flow
from pyro_dgm.distributions.transforms.multiscale import Multiscale
from pyro_dgm.distributions.transforms.neural_autoregressive import NeuralAutoregressive, SigmoidalFamily
from pyro_dgm.distributions.transforms.permutation import Permutation
from pyro_dgm.distributions.transforms.planar import Planar
from pyro_dgm.distributions.transforms.radial import Radial
from pyro_dgm.distributions.transforms.reshape import Reshape
from pyro_dgm.distributions.transforms.residual import Residual
from pyro_dgm.distributions.transforms.spline import CircularSpline, Spline
from pyro_dgm.distributions.transforms.spline_coupling import CircularSplineCoupling, SplineCoupling
from pyro_dgm.distributions.transforms.squeeze import Squeeze
from pyro_dgm.distributions.transforms.sum_of_squares import SumOfSquares, SumOfSquaresFamily
from pyro_dgm.distributions.transforms.sylvester import Sylvester
from pyro_dgm.distributions.transforms.transformer import TransformerAutoregressive
from pyro_dgm.distributions.transforms.wrapped import Wrapped, as_bijection

#: every transform that can be made from sizes alone, by name
TRANSFORMS: dict[str, type[Bijection]] = {
    "actnorm": ActNorm,
    "additive_coupling": AdditiveCoupling,
    "affine_autoregressive": AffineAutoregressive,
    "affine_coupling": AffineCoupling,
    "bernstein": Bernstein,
    "circular_spline": CircularSpline,
    "circular_spline_coupling": CircularSplineCoupling,
    "continuous": Continuous,
    "elementwise_affine": ElementwiseAffine,
    "householder": Householder,
    "image_coupling": ImageCoupling,
    "invertible_conv1x1": InvertibleConv1x1,
    "lu_linear": LULinear,
    "permutation": Permutation,
    "planar": Planar,
    "radial": Radial,
    "spline": Spline,
    "spline_autoregressive": SplineAutoregressive,
    "spline_coupling": SplineCoupling,
    "squeeze": Squeeze,
    "sylvester": Sylvester,
    "neural_autoregressive": NeuralAutoregressive,
    "residual": Residual,
    "sum_of_squares": SumOfSquares,
    "transformer_autoregressive": TransformerAutoregressive,
}

__all__ = [
    "TRANSFORMS",
    "ActNorm",
    "AdditiveCoupling",
    "AdditiveFamily",
    "AffineAutoregressive",
    "AffineCoupling",
    "AffineFamily",
    "Autoregressive",
    "Bernstein",
    "BernsteinFamily",
    "Bijection",
    "CircularSpline",
    "CircularSplineCoupling",
    "CircularSplineFamily",
    "Compose",
    "Conditioned",
    "Continuous",
    "Coupling",
    "Elementwise",
    "ElementwiseAffine",
    "ElementwiseFamily",
    "Householder",
    "ImageCoupling",
    "Inverse",
    "InvertibleConv1x1",
    "LULinear",
    "LinearTails",
    "LocationScale",
    "Multiscale",
    "NeuralAutoregressive",
    "Permutation",
    "Planar",
    "Radial",
    "Reshape",
    "Residual",
    "SigmoidalFamily",
    "Spline",
    "SplineAutoregressive",
    "SplineCoupling",
    "SplineFamily",
    "Squeeze",
    "SumOfSquares",
    "SumOfSquaresFamily",
    "Sylvester",
    "TransformerAutoregressive",
    "Wrapped",
    "as_bijection",
    "make_flow",
    "make_image_flow",
]
