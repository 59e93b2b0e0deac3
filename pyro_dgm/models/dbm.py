"""The deep Boltzmann machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.dbm import DBMDistribution
from pyro_dgm.distributions.rbm import RBMDistribution
from pyro_dgm.distributions.visible_units import BernoulliUnits, ProbabilityUnits
from pyro_dgm.models.boltzmann import BoltzmannFamily
from pyro_dgm.ops.arguments import check_count, check_sizes
from pyro_dgm.ops.log_normalizer import LogNormalizer

__all__ = ["DBM", "DBMStage"]


class DBM(BoltzmannFamily):
    r"""Deep Boltzmann machine: layers of binary units, each coupled to the next, no arrows.

    .. math:: p(v, h) \propto \exp\left( \sum_{l=0}^{L} b_l^\top h_l + \sum_{l=0}^{L-1} h_l^\top W_l h_{l+1} \right),
              \qquad h_0 = v

    The site ``x`` has :class:`~pyro_dgm.distributions.DBMDistribution`: its ``log_prob`` is the mean-field lower
    bound on the unnormalised density, so that :class:`~pyro_dgm.infer.PersistentCD` trains a bound on the likelihood:
    mean field in the positive phase, persistent chains in the negative one.  Layers do best if they are pretrained
    one by one::

        data = x
        for layer in range(len(dbm.hidden)):
            stage = dbm.stage(layer)
            pyro_dgm.fit(stage, data, objective=ContrastiveDivergence(1), epochs=10)
            dbm.load_stage(layer, stage)
            data = stage.encode(data)

    :param num_visible: visible units, in {0, 1}.
    :param hidden: sizes of the hidden layers, two or more.
    :param num_mean_field: rounds of mean field.
    :raises ValueError: for sizes that are not positive, or fewer than two hidden layers.

    Source: R. Salakhutdinov and G. Hinton (2009), "Deep Boltzmann machines".

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> dbm = pyro_dgm.models.DBM(num_visible=6, hidden=(4, 3))
        >>> x = torch.randint(2, (20, 6)).float()
        >>> objective = pyro_dgm.infer.PersistentCD(num_steps=5, num_chains=50)
        >>> run = pyro_dgm.fit(dbm, x, objective=objective, epochs=2, progress=False)
        >>> bool((dbm.elbo(x) <= dbm.log_likelihood(x) + 1e-5).all())
        True
    """

    def __init__(self, num_visible: int, hidden: Sequence[int], *, num_mean_field: int = 30) -> None:
        sizes = [num_visible, *hidden]
        if len(sizes) < 3:
            raise ValueError(
                f"hidden must hold two or more layers, got {tuple(hidden)}: one is RBM(num_visible, num_hidden)"
            )
        check_count("num_visible", num_visible)
        check_sizes("hidden", tuple(hidden))
        super().__init__((num_visible,))
        self.num_visible, self.hidden, self.num_mean_field = num_visible, tuple(hidden), num_mean_field
        self.units = BernoulliUnits(num_visible)
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.weights = nn.ParameterList([nn.Parameter(0.01 * torch.randn(a, b)) for a, b in pairs])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in sizes])
        self.distribution()  # refuses a number of rounds that is not one

    def distribution(self) -> DBMDistribution:
        """The law of the visible units at the present parameters."""
        return DBMDistribution(list(self.weights), list(self.biases), self.num_mean_field, validate_args=False)

    @torch.no_grad()
    def elbo(self, x: Tensor, log_normalizer: float | Tensor | LogNormalizer | None = None) -> Tensor:
        r"""Lower bound on :math:`\log p(x_n)` by mean field, nats, ``(N,)``, float64.

        :param log_normalizer: :math:`\log Z`; by default it is enumerated.  With an estimate it is a bound as far as
            the estimate is right.
        """
        return super().log_likelihood(x, log_normalizer)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, log_normalizer: float | Tensor | LogNormalizer | None = None) -> Tensor:
        r"""Exact :math:`\log p(x_n)` in nats, ``(N,)``, float64, hidden layers summed over.

        :param log_normalizer: :math:`\log Z`; by default it is enumerated.
        :raises ValueError: where layers are too large to enumerate: :meth:`elbo` is a bound.
        """
        self.check_batch(x)
        log_z = self.log_normalizer("exact") if log_normalizer is None else log_normalizer
        return self.distribution().exact_log_prob(x) - float(log_z)

    log_prob = log_marginal = log_likelihood

    def stage(self, layer: int) -> DBMStage:
        """The restricted machine that pretrains :math:`W_l`, :math:`l` = ``layer``."""
        if not 0 <= layer < len(self.hidden):
            raise ValueError(f"layer must be from 0 to {len(self.hidden) - 1}, got {layer!r}")
        sizes = [self.num_visible, *self.hidden]
        last = len(self.hidden) - 1
        return DBMStage(sizes[layer], sizes[layer + 1], 2 if layer == 0 else 1, 2 if layer == last else 1)

    @torch.no_grad()
    def load_stage(self, layer: int, stage: DBMStage) -> None:
        """Take in what a stage has learned: layers between first and last are halved, since both sides feed them."""
        ends = layer in (0, len(self.hidden) - 1)
        self.weights[layer].copy_(stage.weight if ends else 0.5 * stage.weight)
        if layer == 0:
            self.biases[0].copy_(stage.visible_bias)
        self.biases[layer + 1].copy_(stage.hidden_bias)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it, for JSON."""
        return {"num_visible": self.num_visible, "hidden": list(self.hidden), "num_mean_field": self.num_mean_field}


class DBMStage(BoltzmannFamily):
    """A restricted machine whose visible, or hidden, units are there twice with the same weights.

    In a deep machine a layer is fed from both sides.  A first layer that is pretrained alone sees its data twice to
    make up for the missing side, and a last one has its hidden units twice.  Data may be probabilities, as the stage
    below gives them.  :meth:`DBM.stage` makes them.

    :param num_visible: units of the lower layer.
    :param num_hidden: units of the upper layer.
    :param visible_copies: 1 or 2.
    :param hidden_copies: 1 or 2.
    """

    def __init__(self, num_visible: int, num_hidden: int, visible_copies: int, hidden_copies: int) -> None:
        super().__init__((num_visible,))
        self.visible_copies, self.hidden_copies = visible_copies, hidden_copies
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.units = ProbabilityUnits(num_visible * visible_copies)
        self.weight = nn.Parameter(0.01 * torch.randn(num_visible, num_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))

    def distribution(self) -> RBMDistribution:
        """The law of all copies of the visible units."""
        return RBMDistribution(
            self.weight.repeat(self.visible_copies, self.hidden_copies),
            self.visible_bias.repeat(self.visible_copies),
            self.hidden_bias.repeat(self.hidden_copies),
            self.units,
            validate_args=False,
        )

    def as_observed(self, x: Tensor) -> Tensor:
        """Data as often as there are copies."""
        return x.repeat(1, self.visible_copies)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Probabilities of the hidden units given the data: data for the next stage."""
        self.check_batch(x)
        return self.distribution().hidden_logits(self.as_observed(x))[:, : self.num_hidden].sigmoid()
