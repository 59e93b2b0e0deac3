"""How the contract test makes each transform, and what it may expect of it."""

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


#: by the name in ``TRANSFORMS``, with a suffix for a second case
CASES: dict[str, Case] = {
    "elementwise_affine": Case(lambda **k: t.ElementwiseAffine(3, **k)),
    "elementwise_affine-image": Case(lambda **k: t.ElementwiseAffine((2, 2), **k), event_shape=(2, 2)),
}

#: those that are two-dimensional, for the integral over a grid; made with the same keywords
PLANE: dict[str, Callable[..., Any]] = {
    "elementwise_affine": lambda **k: t.ElementwiseAffine(2, **k),
}
