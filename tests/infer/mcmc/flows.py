"""Small flows with known inverses, for the tests of kernels that use one."""

from __future__ import annotations

import torch
from torch import nn

from pyro_dgm.distributions.transforms import Bijection


class Shear(Bijection):
    """The first coordinate as it is, the others scaled by a function of it; the log-determinant varies.

    :param sign: of the log-determinant that is told; -1 is a mistake, for tests that must see it.
    """

    def __init__(self, dim: int, slope: float = 0.0, sign: float = 1.0) -> None:
        super().__init__(dim)
        self.slope = nn.Parameter(torch.full((dim - 1,), slope))
        self.shift = nn.Parameter(torch.zeros(dim - 1))
        self.told = sign

    def _log_scale(self, first):
        return self.slope * first + self.shift

    def _forward(self, x, context):
        log_scale = self._log_scale(x[..., :1])
        y = torch.cat([x[..., :1], x[..., 1:] * log_scale.exp()], -1)
        return y, self.told * log_scale.sum(-1)

    def _backward(self, y, context):
        log_scale = self._log_scale(y[..., :1])
        x = torch.cat([y[..., :1], y[..., 1:] * (-log_scale).exp()], -1)
        return x, -self.told * log_scale.sum(-1)
