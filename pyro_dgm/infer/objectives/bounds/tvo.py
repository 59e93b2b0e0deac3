"""The thermodynamic variational objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.infer.objectives.score_function.score_function import CutSamples, cut_terms
from pyro_dgm.ops.arguments import check_count, check_number

__all__ = ["TVO"]

SCHEDULES = ("log", "equal")


@dataclass(eq=False, repr=False)
class TVO(ParticleObjective):
    r"""The ELBO's one rectangle under the curve whose area is :math:`\log p(x)`, cut into several.

    .. math:: \log p(x) = \int_0^1 E_{\pi_\beta}[\log w] \, d\beta \ge
              \sum_{p=0}^{P-1} (\beta_{p+1} - \beta_p) E_{\pi_{\beta_p}}[\log w], \qquad
              \pi_\beta(z) \propto q(z|x)^{1-\beta} p(x, z)^\beta, \quad w = \frac{p(x, z)}{q(z|x)}

    with :math:`0 = \beta_0 < \ldots < \beta_P = 1`.  The curve rises from the ELBO, so the left Riemann sum is a lower
    bound, and the ELBO with P = 1.  Expectations under :math:`\pi_\beta` are self-normalised averages over K samples
    of the guide with weights :math:`\tilde w_k^{(\beta)} \propto w_k^\beta`.  What is so computed lies, draw for draw,
    between the average of :math:`\log w_k` and :math:`\log \frac1K \sum_k w_k`, for the curve of the K samples rises
    too and has this area: it is a lower bound of :math:`\log p(x)` for any K, between ELBO and
    :class:`~pyro_dgm.infer.IWAE` bound.

    The gradient is the paper's covariance form, which needs no reparameterised site and differentiates through none:

    .. math:: \nabla E_{\pi_\beta}[\log w] = E_{\pi_\beta}[\nabla \log w] + \mathrm{Cov}_{\pi_\beta}
              \left[\nabla \left((1 - \beta) \log q + \beta \log p\right), \log w\right]

    In it the score of each sample is multiplied by :math:`\tilde w_k (\log w_k - m_{-k})`, with :math:`m_{-k}` the
    weighted mean of :math:`\log w` over the *other* samples.  The paper has the mean over all; with the others' the
    gradient is without bias that of the K-sample bound above, and tends to the paper's as K grows.  It pays for
    discrete latents, several particles, and a few partitions; more are a tighter bound, which is noisier to follow.

    :param num_particles: number K of particles, at least 2.
    :param num_partitions: number P of rectangles.
    :param schedule: ``"log"``: :math:`\beta_1, \ldots, \beta_P` in equal ratios, for curves that rise steeply near
        zero; ``"equal"``: in equal steps.
    :param beta_1: first :math:`\beta` above zero with ``"log"``, in (0, 1); the bound is tightest where it meets the
        curve's bend.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for values out of range.

    Source: V. Masrani, T. A. Le and F. Wood (2019), arXiv:1907.00031.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import TVO
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> TVO(num_partitions=3, num_particles=20)(m.model, m.guide)(torch.zeros(7, 3)).backward()
        >>> TVO(num_partitions=4, schedule="equal").betas
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """

    min_particles = 2

    num_particles: int = 10
    num_partitions: int = 5
    schedule: str = "log"
    beta_1: float = 0.1

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be 'log' or 'equal', got {self.schedule!r}")
        check_number("beta_1", self.beta_1)
        if not 0 < self.beta_1 < 1:
            raise ValueError(f"beta_1 must be between 0 and 1, got {self.beta_1!r}")
        super().__post_init__()

    @property
    def betas(self) -> tuple[float, ...]:
        """:math:`\\beta_0 = 0` to :math:`\\beta_P = 1`."""
        count = self.num_partitions
        if self.schedule == "equal" or count == 1:
            return tuple(p / count for p in range(count + 1))
        return 0.0, *(self.beta_1 ** ((count - p) / (count - 1)) for p in range(1, count + 1))

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        with CutSamples():
            return super().particles(model, guide, args, kwargs, grad)

    def bound_of(self, particles: Particles) -> Tensor:
        log_w = particles.log_weights
        areas = [width * (weights * log_w).sum(0) for _, width, weights in self._rectangles(log_w)]
        return sum(areas[1:], areas[0])

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        log_w = particles.log_weights.detach()
        inside = torch.zeros_like(log_w)  # how each log-weight moves the weighted means
        signal = torch.zeros_like(log_w)  # what each sample's being drawn is worth
        first = torch.zeros_like(log_w)
        for beta, width, weights in self._rectangles(log_w):
            moved = width * weights * (1 + beta * (log_w - (weights * log_w).sum(0)))
            inside = inside + moved
            if beta == 0:
                first = moved
            signal = signal + width * weights * (log_w - _mean_of_others(log_w, beta))
        direct, scores = cut_terms(particles)
        sampled_log_q = direct - particles.log_weights
        # At beta = 0 the guide's own log-density has a gradient of mean zero: it is left out there.
        total = (inside * direct - (inside - first) * sampled_log_q + signal * scores).sum()
        return particles.outer_scale * total

    def _rectangles(self, log_w: Tensor) -> list[tuple[float, float, Tensor]]:
        """Left end, width and weights of the samples for each rectangle."""
        betas = self.betas
        return [(b, c - b, (b * log_w).softmax(0)) for b, c in zip(betas, betas[1:], strict=False)]


def _mean_of_others(log_w: Tensor, beta: float) -> Tensor:
    """For each sample the mean of ``log_w`` over the others, weighted by the power ``beta`` of their weights."""
    weights = (beta * log_w).softmax(0)
    means = ((weights * log_w).sum(0) - weights * log_w) / (1 - weights)
    # The heaviest may have all the weight: then the weights of the others are computed again, without it.
    top = log_w.argmax(0, keepdim=True)
    rest = (beta * log_w).scatter(0, top, -torch.inf).softmax(0)
    return means.scatter(0, top, (rest * log_w).sum(0, keepdim=True))
