r"""Scores and their directional derivatives: what the score matching objectives are made of."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_dgm.distributions.chains import is_real
from pyro_dgm.infer.objectives.energies.base import EnergyObjective, EnergySite

__all__ = ["ScoreObjective", "score", "score_and_curvature"]

LogProb = Callable[[Tensor], Tensor]


def score(log_prob: LogProb, x: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\nabla_x \log p(x)` of each datum, and :math:`\log p(x)`, both differentiable in the parameters.

    :param log_prob: from ``(N, *event_shape)`` to ``(N,)``, an entry depending on its datum alone.
    :returns: ``(N, *event_shape)`` and ``(N,)``.
    """

    def total(y: Tensor) -> tuple[Tensor, Tensor]:
        values = log_prob(y)
        return values.sum(), values

    return torch.func.grad(total, has_aux=True)(x)


def score_and_curvature(log_prob: LogProb, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The score, :math:`v^\top \nabla_x^2 \log p(x) \, v` for directions :math:`v`, and the value.

    Forward over reverse: one derivative of the gradient along each direction.

    :param log_prob: as for :func:`score`.
    :param x: ``(N, *event_shape)``.
    :param directions: ``(M, N, *event_shape)``, or ``(M, 1, *event_shape)`` for the same at each datum.
    :returns: ``(N, *event_shape)``, ``(M, N)`` and ``(N,)``.
    """
    _load_decompositions()

    def along(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = v.expand_as(x)
        found, change, value = torch.func.jvp(lambda y: score(log_prob, y), (x,), (v,), has_aux=True)  # type: ignore[misc]
        return found, (v * change).reshape(len(x), -1).sum(-1), value

    # Score and value do not depend on the direction, and so come out once.
    return torch.func.vmap(along, out_dims=(None, 0, None))(directions)  # type: ignore[arg-type]


@functools.cache
def _load_decompositions() -> None:
    """Have torch script its forward-mode rules now, which it does by a function that it warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


class ScoreObjective(EnergyObjective):
    """Base of the score matching objectives: what they ask of the site."""

    def check_site(self, site: EnergySite) -> None:
        """Refuse a density that is not on all of R^d: integration by parts leaves a term at the boundary.

        :raises ValueError: naming the site and its support.
        """
        super().check_site(site)
        support = site.distribution.support
        if not is_real(support):
            raise ValueError(
                f"{type(self).__name__} needs a density on all of R^d, but site {site.name!r} has support {support}: "
                "transform the data to real numbers, or train with PersistentCD or NoiseContrastive"
            )

    @staticmethod
    def log_prob_of(site: EnergySite) -> LogProb:
        """The site's log-density as a function of a whole batch of values."""
        # One datum a row: it is called under vmap, where no value can be looked at to be validated.
        law = site.distribution.expand(torch.Size())
        law._validate_args = False
        return law.log_prob

    def check_score(self, value: Tensor, site: EnergySite, points: str) -> Tensor:
        """:meth:`check_finite` for scores at ``points``."""
        return self.check_finite(
            value,
            lambda _, count: f"the gradient of the energy at site {site.name!r} is not finite at {count} {points}",
        )
