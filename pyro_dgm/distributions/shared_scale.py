"""Normals of one scale, without the work that a scale for each element would take."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["SharedScaleNormal"]


class SharedScaleNormal(dist.Normal):
    r"""A normal whose scale has fewer elements than its location, as :class:`torch.distributions.Normal` otherwise.

    .. math:: \log p(x) = -\frac{(x - \mu)^2}{2 \sigma^2} - \log \sigma - \frac{1}{2} \log 2 \pi

    Torch's broadcasts the scale first, and squares it and takes its logarithm once for every element.  Here both are
    taken of what was given.  ``log_prob`` is in nats, one for each element.

    :param loc: :math:`\mu`, of the shape of the batch.
    :param scale: :math:`\sigma`, in the units of ``loc``, of a shape that broadcasts to its.
    :raises ValueError: with ``validate_args``, for a scale that is not positive, or values that are not real numbers.
    """

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self._given_scale = scale
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SharedScaleNormal:
        new = self._get_checked_instance(SharedScaleNormal, _instance)
        shape = torch.Size(batch_shape)
        new.loc, new.scale, new._given_scale = self.loc.expand(shape), self.scale.expand(shape), self._given_scale
        super(torch.distributions.Normal, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        scale = self._given_scale
        normaliser = scale.log() + 0.5 * math.log(2 * math.pi)
        return (value - self.loc).square() * (-0.5 / scale.square()) - normaliser
