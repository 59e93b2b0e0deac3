"""Sliced score matching: random directions in place of the trace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.energies.base import EnergySite
from pyro_dgm.infer.objectives.energies.score import ScoreObjective, score_and_curvature
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.ops.arguments import check_count

__all__ = ["SlicedScoreMatching"]


@dataclass(eq=False, repr=False)
class SlicedScoreMatching(ScoreObjective):
    r"""Sliced score matching: scores are compared along random directions, at one product with the Hessian each.

    .. math:: J(\theta) = \sum_n \mathbb{E}_v \left[ v^\top \nabla_x s_\theta(x_n) \, v
              + \tfrac12 \left( v^\top s_\theta(x_n) \right)^2 \right]

    With :math:`\mathbb{E} \, v v^\top = I` it is the loss of :class:`ScoreMatching` in expectation, whose second term
    then is :math:`\frac12 \| s_\theta \|^2`: with ``variance_reduction`` that is used as it is, and the noise is
    the trace's alone.  Take it where there are too many dimensions for the exact trace.  What is said there of smooth
    energies, of far modes and of data on few values holds here too.

    ``run.history["train"]`` holds :math:`J / N`.

    :param num_slices: directions a datum and step.
    :param directions: their law: ``"rademacher"`` (signs, whose trace has the least noise), ``"normal"`` or
        ``"sphere"`` (of length :math:`\sqrt D`).
    :param variance_reduction: whether to take :math:`\frac12 \| s_\theta \|^2` in closed form.
    :raises ValueError: for a number or word out of range; in training, for a support that is not all reals, or energies
        or derivatives that are not finite.

    Source: Y. Song, S. Garg, J. Shi and S. Ermon (2019), "Sliced score matching: a scalable approach to density and
    score estimation", arXiv:1905.07088.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import SlicedScoreMatching
        >>> _ = torch.manual_seed(0)
        >>> ebm = pyro_dgm.models.EBM(event_shape=(2,), hidden=(16,))
        >>> run = pyro_dgm.fit(ebm, torch.randn(50, 2), objective=SlicedScoreMatching(), epochs=2, progress=False)
    """

    metric = Metric("sliced score matching loss", "per datum", "lower")
    DIRECTIONS = ("rademacher", "normal", "sphere")

    num_slices: int = 1
    directions: str = "rademacher"
    variance_reduction: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_slices", self.num_slices)
        if self.directions not in self.DIRECTIONS:
            known = ", ".join(map(repr, self.DIRECTIONS))
            raise ValueError(f"directions must be one of {known}, got {self.directions!r}")

    def draw(self, x: Tensor) -> Tensor:
        """Directions for a batch, ``(num_slices, N, *event_shape)``, with the identity as second moment."""
        shape = (self.num_slices, *x.shape)
        if self.directions == "rademacher":
            return torch.randint(2, shape, device=x.device).to(x.dtype) * 2 - 1
        v = torch.randn(shape, dtype=x.dtype, device=x.device)
        if self.directions == "sphere":
            flat = v.reshape(*shape[:2], -1)
            v = (flat * (flat.shape[-1] ** 0.5 / flat.norm(dim=-1, keepdim=True))).reshape(shape)
        return v

    def surrogate(self, site: EnergySite) -> Tensor:
        x = site.value
        v = self.draw(x)
        found, curvature, value = score_and_curvature(self.log_prob_of(site), x, v)
        self.check_energy(value, site, "data")
        if self.variance_reduction:
            length = found.reshape(len(x), -1).square().sum(-1)
        else:
            length = (v * found).reshape(self.num_slices, len(x), -1).sum(-1).square().mean(0)
        loss = 0.5 * length + curvature.mean(0)
        return self.check_score(loss, site, "data").sum()
