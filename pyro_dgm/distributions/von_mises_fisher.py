"""Distributions on the unit sphere: von Mises-Fisher, and uniform."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import register_kl

from pyro_dgm.ops.arguments import check_count

__all__ = ["UniformSphere", "VonMisesFisher"]

#: nodes of the quadrature over angles; enough for float64 up to some 400 dimensions at any concentration
_NODES = 128
#: proposals for each draw: the least acceptance probability is 0.66, so that all fail with probability below 1e-12
_PROPOSALS = 26


def log_area(dim: int) -> float:
    """Logarithm of the area of the unit sphere in ``dim`` dimensions."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class VonMisesFisher(TorchDistribution):
    r"""A distribution of directions around a mean direction: the normal distribution's counterpart on the sphere.

    .. math:: p(x) = C_m(\kappa)\, e^{\kappa \mu^\top x}, \qquad
              C_m(\kappa) = \frac{\kappa^{m/2 - 1}}{(2 \pi)^{m/2} I_{m/2 - 1}(\kappa)}, \qquad |x| = |\mu| = 1

    The normaliser is computed by quadrature over the angle to the mean, not from Bessel functions, which torch does not
    have: to rounding up to some 400 dimensions, with derivatives, on any device. The cosine of the angle is drawn by
    rejection from 26 proposals at once, with the implicit gradient in :math:`\kappa`, so that draws are
    reparameterised and a recorded graph can hold them.

    :param loc: :math:`\mu`, unit vectors, ``batch + (m,)``, :math:`m \ge 2`.
    :param concentration: :math:`\kappa > 0`, of a shape that broadcasts to ``batch``.
    :raises ValueError: for vectors of length below 2, or shapes that do not fit; with ``validate_args``, for values off
        the sphere, or a concentration that is not positive.

    Source: T. R. Davidson, L. Falorsi, N. De Cao, T. Kipf and J. M. Tomczak (2018), arXiv:1804.00891; A. T. A. Wood
    (1994), "Simulation of the von Mises Fisher distribution"; implicit gradients of M. Figurnov, S. Mohamed and A. Mnih
    (2018), arXiv:1805.08498.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import VonMisesFisher
        >>> directions = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(5.0))
        >>> x = directions.sample((4,))
        >>> bool((x.norm(dim=-1) - 1).abs().max() < 1e-6), directions.log_prob(x).shape
        (True, torch.Size([4]))
    """

    arg_constraints = {"loc": constraints.sphere, "concentration": constraints.positive}
    support = constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        if loc.dim() < 1 or loc.shape[-1] < 2:
            raise ValueError(f"loc must have shape batch + (m,) with m at least 2, got {tuple(loc.shape)}")
        batch = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*batch, loc.shape[-1])
        self.concentration = concentration.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        new = self._get_checked_instance(VonMisesFisher, _instance)
        shape = torch.Size(batch_shape)
        new.loc, new.concentration = self.loc.expand(shape + self.event_shape), self.concentration.expand(shape)
        TorchDistribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        """m, the number of elements of a vector."""
        return self.event_shape[0]

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # kappa (cos - 1) is the exponent relative to its largest value, which the normaliser leaves out too.
        from_mean = -0.5 * (value - self.loc).square().sum(-1)
        return self.concentration * from_mean - _log_integral(self.concentration, self.dim) - log_area(self.dim - 1)

    def entropy(self) -> Tensor:
        """:math:`-E[\\log p]`, nats."""
        return (
            self.concentration * (1 - self.mean_cosine)
            + _log_integral(self.concentration, self.dim)
            + log_area(self.dim - 1)
        )

    @property
    def mean_cosine(self) -> Tensor:
        """:math:`E[\\mu^\\top x] = I_{m/2}(\\kappa) / I_{m/2-1}(\\kappa)`."""
        angles, log_weights = _angles(self.concentration, self.dim)
        return (log_weights.softmax(0) * angles.cos()).sum(0)

    @property
    def mean(self) -> Tensor:
        return self.mean_cosine[..., None] * self.loc

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        cosine = self._cosine(shape[:-1])
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        tangent = noise - (noise * self.loc).sum(-1, keepdim=True) * self.loc
        tangent = tangent / tangent.norm(dim=-1, keepdim=True)
        sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).tiny).sqrt()
        return cosine[..., None] * self.loc + sine[..., None] * tangent

    def _cosine(self, shape: torch.Size) -> Tensor:
        """Draws of the cosine of the angle to the mean, with their gradient in the concentration."""
        kappa, one_less = self.concentration.expand(shape), self.dim - 1
        with torch.no_grad():
            # Beta draws from gamma draws: torch's own have no rule for vmap.
            half = torch.full((2, _PROPOSALS, *shape), one_less / 2, dtype=kappa.dtype, device=kappa.device)
            gamma = torch.distributions.Gamma(half, torch.ones_like(half), validate_args=False).sample()
            beta = gamma[0] / gamma.sum(0)
            ratio = one_less / (2 * kappa + (4 * kappa.square() + one_less**2).sqrt())
            centre = (1 - ratio) / (1 + ratio)
            proposed = (1 - (1 + ratio) * beta) / (1 - (1 - ratio) * beta)
            log_ratio = kappa * (proposed - centre) + one_less * (
                torch.log1p(-centre * proposed) - torch.log1p(-centre.square())
            )
            accepted = log_ratio >= torch.rand_like(proposed).log()
            first = accepted.to(torch.uint8).argmax(0, keepdim=True)
            cosine = proposed.gather(0, first)[0].clamp(-1, 1)
            slope = _slope(cosine, kappa, self.dim)
        # The value is the draw; its derivative is the slope.
        return cosine + slope * (kappa - kappa.detach())


class UniformSphere(TorchDistribution):
    r"""The uniform distribution on the unit sphere: the prior of hyperspherical autoencoders.

    .. math:: p(x) = \frac{\Gamma(m / 2)}{2 \pi^{m / 2}}, \qquad |x| = 1

    Its divergence from a :class:`VonMisesFisher` is known in closed form, and depends on the concentration alone.

    :param dim: m, the number of elements of a vector, at least 2.
    :param like: a tensor whose dtype and device are those of draws; by default torch's.
    :raises TypeError, ValueError: for a dimension that is no integer of at least 2.

    Source: T. R. Davidson, L. Falorsi, N. De Cao, T. Kipf and J. M. Tomczak (2018), arXiv:1804.00891.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import UniformSphere
        >>> sphere = UniformSphere(3)
        >>> round(float(sphere.log_prob(torch.tensor([0.0, 1.0, 0.0])).exp() * 4 * torch.pi), 5)
        1.0
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.sphere
    has_rsample = True

    def __init__(self, dim: int, like: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.dim = check_count("dim", dim, 2)
        self._like = torch.zeros((), device="cpu") if like is None else like.detach().new_zeros(())
        super().__init__(torch.Size(), torch.Size((self.dim,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> UniformSphere:
        new = self._get_checked_instance(UniformSphere, _instance)
        new.dim, new._like = self.dim, self._like
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(self.dim))

    def entropy(self) -> Tensor:
        """:math:`\\log` of the area, nats."""
        return self._like.new_full(self.batch_shape, log_area(self.dim))

    @property
    def mean(self) -> Tensor:
        return self._like.new_zeros(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self._like.dtype, device=self._like.device)
        return noise / noise.norm(dim=-1, keepdim=True)


@register_kl(VonMisesFisher, UniformSphere)
def _kl_vmf_uniform(p: VonMisesFisher, q: UniformSphere) -> Tensor:
    return log_area(q.dim) - p.entropy()


@functools.lru_cache
def _legendre() -> tuple[Any, Any]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) / 2, weights / 2


def _angles(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    r"""Angles to the mean, and the logarithms of the density's mass at each, ``(nodes, *batch)``.

    The density of the angle is proportional to :math:`e^{\kappa (\cos\theta - 1)} \sin^{m - 2} \theta`. At a large
    concentration the nodes are laid where its mass is: beyond, less than rounding is left.
    """
    end = (math.pi * ((dim + 45) / (2 * kappa.detach())).sqrt()).clamp(max=math.pi)
    return _quadrature(end, kappa, dim)


def _quadrature(end: Tensor, kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes from 0 to an angle, and the logarithms of weight times density."""
    shape = (_NODES, *[1] * kappa.dim())
    nodes, weights = (torch.as_tensor(v, dtype=kappa.dtype, device=kappa.device).reshape(shape) for v in _legendre())
    angles = nodes * end
    # cos - 1 without cancellation near the mean
    exponent = -2 * kappa * (angles / 2).sin().square()
    return angles, exponent + (dim - 2) * angles.sin().log() + weights.log() + end.log()


def _log_integral(kappa: Tensor, dim: int) -> Tensor:
    return _angles(kappa, dim)[1].logsumexp(0)


def _slope(cosine: Tensor, kappa: Tensor, dim: int) -> Tensor:
    r"""Derivative of a draw of the cosine in the concentration, its quantile held fixed.

    With :math:`F` the distribution function of the angle and :math:`f` its density, :math:`d\theta / d\kappa =
    -\partial_\kappa F / f`, and :math:`\partial_\kappa F(\theta) = \int_0^\theta (\cos t - E \cos)\, f(t)\, dt`.
    """
    tiny = 8 * torch.finfo(cosine.dtype).eps
    angle = cosine.clamp(-1 + tiny, 1 - tiny).acos()
    angles, log_mass = _angles(kappa, dim)
    log_total = log_mass.logsumexp(0)
    mean = ((log_mass - log_total).exp() * angles.cos()).sum(0)
    inner, log_inner = _quadrature(angle, kappa, dim)
    change = ((log_inner - log_total).exp() * (inner.cos() - mean)).sum(0)
    log_density = -2 * kappa * (angle / 2).sin().square() + (dim - 2) * angle.sin().log() - log_total
    return angle.sin() * change * (-log_density).exp()
