"""The fully visible Boltzmann machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.fully_visible import FullyVisibleDistribution
from pyro_dgm.distributions.visible_units import BernoulliUnits
from pyro_dgm.models.boltzmann import BoltzmannFamily
from pyro_dgm.ops.arguments import check_count

__all__ = ["BoltzmannMachine"]


class BoltzmannMachine(BoltzmannFamily):
    r"""Fully visible Boltzmann machine: binary units coupled in pairs.

    .. math:: p(v) \propto \exp\left( b^\top v + \tfrac12 v^\top W v \right)

    The maximum-entropy law with given means and pairwise means; it matches those of the data at its maximum likelihood.
    Train it with :class:`~pyro_dgm.infer.PersistentCD`.  Up to 20 units likelihoods are exact.

    :param num_visible: units.
    :raises ValueError: for fewer than one unit.

    Source: D. Ackley, G. Hinton and T. Sejnowski (1985), "A learning algorithm for Boltzmann machines".

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> bm = pyro_dgm.models.BoltzmannMachine(num_visible=5)
        >>> x = torch.randint(2, (20, 5)).float()
        >>> objective = pyro_dgm.infer.PersistentCD(num_chains=50)
        >>> run = pyro_dgm.fit(bm, x, objective=objective, epochs=2, progress=False)
        >>> bm.log_likelihood(x).shape
        torch.Size([20])
    """

    def __init__(self, num_visible: int) -> None:
        check_count("num_visible", num_visible)
        super().__init__((num_visible,))
        self.num_visible = num_visible
        self.units = BernoulliUnits(num_visible)
        #: only its lower triangle is used; see :attr:`coupling`
        self.weight = nn.Parameter(0.01 * torch.randn(num_visible, num_visible).tril(-1))
        self.bias = nn.Parameter(torch.zeros(num_visible))

    @property
    def coupling(self) -> Tensor:
        """:math:`W`: symmetric, with a zero diagonal."""
        lower = self.weight.tril(-1)
        return lower + lower.mT

    def distribution(self) -> FullyVisibleDistribution:
        """The law of the units at the present parameters."""
        return FullyVisibleDistribution(self.coupling, self.bias, validate_args=False)

    def log_pseudolikelihood(self, x: Tensor) -> Tensor:
        r""":math:`\sum_i \log p(x_i \mid x_{-i})`, nats, ``(N,)``, which needs no :math:`\log Z`."""
        self.check_batch(x)
        return self.distribution().log_pseudolikelihood(x)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it, for JSON."""
        return {"num_visible": self.num_visible}
