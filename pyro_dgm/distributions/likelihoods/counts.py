"""What likelihoods of counts share: the check that data are counts."""

from __future__ import annotations

from torch import Tensor

from pyro_dgm.distributions.likelihoods.base import Likelihood

__all__ = ["CountsLikelihood"]


class CountsLikelihood(Likelihood):
    """Elements that are counts 0, 1, 2, ..., as floating-point numbers.

    :param event_shape: shape of one datum.
    """

    discrete = True

    def check(self, x: Tensor, argument: str = "x") -> None:
        super().check(x, argument)
        if bool(((x < 0) | (x != x.round())).any()):
            raise ValueError(
                f"{argument} must hold counts 0, 1, 2, ..., got values from {x.min():.4g} to {x.max():.4g}, not all of "
                "them whole and none negative"
            )
