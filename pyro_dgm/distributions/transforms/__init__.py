"""Bijections for normalizing flows: value and log-determinant together, in both directions, with or without context."""

from pyro_dgm.distributions.transforms.affine import ElementwiseAffine
from pyro_dgm.distributions.transforms.base import Bijection, Conditioned, Inverse
from pyro_dgm.distributions.transforms.compose import Compose
from pyro_dgm.distributions.transforms.wrapped import Wrapped, as_bijection

#: every transform that can be made from sizes alone, by name
TRANSFORMS: dict[str, type[Bijection]] = {
    "elementwise_affine": ElementwiseAffine,
}

__all__ = [
    "TRANSFORMS",
    "Bijection",
    "Compose",
    "Conditioned",
    "ElementwiseAffine",
    "Inverse",
    "Wrapped",
    "as_bijection",
]
