"""The restricted Boltzmann machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.rbm import RBMDistribution
from pyro_dgm.distributions.visible_units import (
    VISIBLE_UNITS,
    BernoulliUnits,
    CategoricalUnits,
    GaussianUnits,
    VisibleUnits,
)
from pyro_dgm.models.boltzmann import BoltzmannFamily
from pyro_dgm.ops.arguments import check_count, check_positive

__all__ = ["RBM"]


class RBM(BoltzmannFamily):
    r"""Restricted Boltzmann machine: visible units coupled to binary hidden ones, and not among themselves.

    .. math:: p(v, h) \propto \exp\left( g(v, b) + s(v)^\top W h + c^\top h \right), \qquad h \in \{0, 1\}^H

    The observed site ``x`` has the law of the visible units with the hidden ones summed out
    (:class:`~pyro_dgm.distributions.RBMDistribution`), known up to :math:`\log Z`; there is no latent site.  Train it
    with :class:`~pyro_dgm.infer.ContrastiveDivergence` or :class:`~pyro_dgm.infer.PersistentCD`; an ELBO is
    refused, for it would take the unnormalised density for a density.

    :param num_visible: visible units.
    :param num_hidden: hidden units H; up to 20 of them, likelihoods are exact.
    :param visible: ``"bernoulli"`` (data in {0, 1}), ``"gaussian"`` (real data, standardised) or ``"categorical"``
        (one-hot data, ``(N, num_visible, num_categories)``).
    :param num_categories: categories of each unit, for ``"categorical"`` alone.
    :param scale: standard deviation of Gaussian visible units given the hidden ones, fixed.
    :param event_shape: shape of a datum, of ``num_visible`` elements (``(28, 28)``); ``(num_visible,)`` by default.
    :raises ValueError: for sizes that are not positive, an unknown ``visible``, or arguments of another kind of unit.

    Source: P. Smolensky (1986); G. Hinton (2002), "Training products of experts by minimizing contrastive divergence";
    initial weights of G. Hinton (2012), "A practical guide to training restricted Boltzmann machines".

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> rbm = pyro_dgm.models.RBM(num_visible=6, num_hidden=3)
        >>> x = torch.randint(2, (10, 6)).float()
        >>> objective = pyro_dgm.infer.PersistentCD(num_steps=1, num_chains=20)
        >>> run = pyro_dgm.fit(rbm, x, objective=objective, epochs=2, progress=False)
        >>> rbm.log_likelihood(x).shape
        torch.Size([10])
        >>> estimate = rbm.log_normalizer("ais", num_temperatures=100, num_chains=50, seed=0)
        >>> abs(float(estimate) - float(rbm.log_normalizer("exact"))) < 0.05
        True
    """

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        visible: str = "bernoulli",
        *,
        num_categories: int | None = None,
        scale: float = 1.0,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        for argument, value in (("num_visible", num_visible), ("num_hidden", num_hidden)):
            check_count(argument, value)
        units = _make_units(visible, num_visible, num_categories, scale, event_shape)
        super().__init__(units.event_shape)
        self.units = units
        self.num_visible, self.num_hidden, self.visible = num_visible, num_hidden, visible
        self.weight = nn.Parameter(0.01 * torch.randn(units.size, num_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(units.size))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))

    def distribution(self) -> RBMDistribution:
        """The law of the visible units at the present parameters."""
        return RBMDistribution(self.weight, self.visible_bias, self.hidden_bias, self.units, validate_args=False)

    @torch.no_grad()
    def initialize_bias(self, x: Tensor) -> None:
        """Set the visible bias to that of independent units with the data's means, and the hidden bias to zero.

        :param x: training data, ``(N, *event_shape)``.
        """
        self.check_batch(x)
        self.visible_bias.copy_(self.base_bias(x.mean(0)))
        self.hidden_bias.zero_()

    def encode(self, x: Tensor) -> Tensor:
        """Probabilities of the hidden units given data, ``(N, num_hidden)``."""
        self.check_batch(x)
        return self.distribution().hidden_logits(self.units.flat(x)).sigmoid()

    def decode(self, hidden: Tensor) -> Tensor:
        """Means of the visible units given hidden ones, ``(N, num_hidden)`` to ``(N, *event_shape)``."""
        return self.units.shaped(self.units.mean(self.distribution().visible_eta(hidden)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Means of the visible units given the hidden units' means given ``x``."""
        return self.decode(self.encode(x))

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it, for JSON."""
        return {
            "num_visible": self.num_visible,
            "num_hidden": self.num_hidden,
            "visible": self.visible,
            "num_categories": getattr(self.units, "num_categories", None),
            "scale": getattr(self.units, "scale", 1.0),
            "event_shape": list(self.event_shape),
        }


def _make_units(
    visible: str, num_visible: int, num_categories: int | None, scale: float, event_shape: Sequence[int] | None
) -> VisibleUnits:
    if visible not in VISIBLE_UNITS:
        raise ValueError(f"visible must be one of {', '.join(map(repr, VISIBLE_UNITS))}, got {visible!r}")
    if visible != "categorical" and num_categories is not None:
        raise ValueError(f"num_categories is for visible='categorical', got it with {visible!r}")
    if visible != "gaussian" and scale != 1.0:
        raise ValueError(f"scale is for visible='gaussian', got it with {visible!r}")
    if visible == "categorical":
        made = CategoricalUnits(num_visible, check_count("num_categories", num_categories, 2))
        if event_shape is not None and torch.Size(event_shape) != made.event_shape:
            raise ValueError(
                f"event_shape of categorical units is {tuple(made.event_shape)}, got {tuple(event_shape)}: leave it out"
            )
        return made
    if visible == "gaussian":
        check_positive("scale", scale)
        return GaussianUnits(num_visible, scale, event_shape)
    return BernoulliUnits(num_visible, event_shape)
