"""What likelihoods of discrete levels share: the number of levels, and the check that data are levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyro_dgm.distributions.likelihoods.base import Likelihood
from pyro_dgm.ops.arguments import check_count

__all__ = ["LevelsLikelihood"]


class LevelsLikelihood(Likelihood):
    """Elements that are levels 0, ..., L - 1, as floating-point numbers.

    :param event_shape: shape of one datum.
    :param num_levels: L, at least 2; 256 for bytes.
    :raises TypeError, ValueError: for a number of levels that is no integer, or below 2.
    """

    discrete = True

    def __init__(self, event_shape: Sequence[int], num_levels: int = 256) -> None:
        super().__init__(event_shape)
        self.num_levels = check_count("num_levels", num_levels, 2)

    def check(self, x: Tensor, argument: str = "x") -> None:
        super().check(x, argument)
        if bool(((x < 0) | (x > self.num_levels - 1) | (x != x.round())).any()):
            raise ValueError(
                f"{argument} must hold the levels 0 to {self.num_levels - 1} as whole numbers, got values from "
                f"{x.min():.4g} to {x.max():.4g}: do not scale the pixels, or give num_levels"
            )

    def config(self) -> dict[str, Any]:
        return {**super().config(), "num_levels": self.num_levels}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_levels={self.num_levels}"
