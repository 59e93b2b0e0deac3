"""The law of a restricted Boltzmann machine's visible units."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from pyro_dgm.distributions.unnormalized import UnnormalizedDistribution
from pyro_dgm.distributions.visible_units import BernoulliUnits, VisibleUnits
from pyro_dgm.ops.annealing import anneal
from pyro_dgm.ops.binary import MAX_ENUMERATED, draw_binary, draw_enumerated, log_sum_over_binary
from pyro_dgm.ops.log_normalizer import LogNormalizer

__all__ = ["RBMDistribution"]


class RBMDistribution(UnnormalizedDistribution):
    r"""Visible units of a restricted Boltzmann machine, its binary hidden units summed out.

    .. math:: p(v) = \frac{e^{-F(v)}}{Z}, \qquad
              -F(v) = g(v, b) + \sum_j \log\left(1 + e^{c_j + s(v)^\top W_{\cdot j}}\right)

    with :math:`g = b^\top v` and :math:`s = v` for binary and one-hot units, and
    :math:`g = -\|v - b\|^2 / 2\sigma^2`, :math:`s = v / \sigma^2` for Gaussian ones.  ``log_prob`` is :math:`-F(v)`,
    without :math:`\log Z`.  Use it at a ``pyro.sample`` site, or :class:`pyro_dgm.models.RBM`, which holds the
    parameters.

    :param weight: :math:`W`, ``(visible, hidden)``; for one-hot units ``(visible * categories, hidden)``.
    :param visible_bias: :math:`b`, ``(visible,)`` or ``(visible * categories,)``.
    :param hidden_bias: :math:`c`, ``(hidden,)``.
    :param units: kind of the visible units; Bernoulli by default.
    :param num_steps: Gibbs sweeps of ``sample``.
    :raises ValueError: for shapes that do not fit.

    Source: P. Smolensky (1986), "Information processing in dynamical systems: foundations of harmony theory"; G. Hinton
    (2002), "Training products of experts by minimizing contrastive divergence"; R. Salakhutdinov, A. Mnih and G. Hinton
    (2007), "Restricted Boltzmann machines for collaborative filtering" (one-hot units).

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import RBMDistribution
        >>> rbm = RBMDistribution(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
        >>> [round(float(x), 4) for x in rbm.log_prob(torch.ones(2, 3))]  # 2 log 2
        [1.3863, 1.3863]
        >>> round(float(rbm.exact_log_normalizer()), 4)  # 5 log 2
        3.4657
    """

    def __init__(
        self,
        weight: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        units: VisibleUnits | None = None,
        num_steps: int = 1000,
        validate_args: bool | None = None,
    ) -> None:
        if weight.dim() != 2 or visible_bias.shape != weight.shape[:1] or hidden_bias.shape != weight.shape[1:]:
            raise ValueError(
                "weight must have shape (visible, hidden), visible_bias (visible,) and hidden_bias (hidden,), got "
                f"{tuple(weight.shape)}, {tuple(visible_bias.shape)} and {tuple(hidden_bias.shape)}"
            )
        self.units = BernoulliUnits(weight.shape[0]) if units is None else units
        if self.units.size != weight.shape[0]:
            raise ValueError(f"weight must have {self.units.size} rows for these units, got {weight.shape[0]}")
        self.weight, self.visible_bias, self.hidden_bias = weight, visible_bias, hidden_bias
        super().__init__(torch.Size(), self.units.event_shape, num_steps, validate_args)

    @property
    def support(self) -> Any:
        return self.units.support

    def log_prob(self, value: Tensor) -> Tensor:
        r""":math:`-F(v)`, nats, without :math:`\log Z`."""
        if self._validate_args:
            self._validate_sample(value)
        flat = self.units.flat(value)
        hidden = softplus(self.hidden_logits(flat)).sum(-1)
        log_prob = self.units.bias_term(flat, self.visible_bias) + hidden
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    # Conditionals; visible units are flat here

    def hidden_logits(self, flat: Tensor) -> Tensor:
        r""":math:`c + s(v) W`: log-odds of the hidden units, ``(..., hidden)``."""
        return linear(self.units.statistics(flat), self.weight.mT, self.hidden_bias)  # the bias added in the product

    def visible_eta(self, hidden: Tensor) -> Tensor:
        r""":math:`b + W h`: natural parameter of the visible units, flat."""
        return linear(hidden, self.weight, self.visible_bias)

    # Chains

    @torch.no_grad()
    def initial_state(self, num_chains: int) -> Tensor:
        """Visible units drawn from their biases alone."""
        eta = self.visible_bias.expand(num_chains, -1)
        return self.units.shaped(self.units.draw(eta))

    @torch.no_grad()
    def mcmc_step(self, state: Tensor, num_steps: int = 1) -> Tensor:
        """Block Gibbs: hidden given visible units, then visible given hidden ones."""
        flat = self.units.flat(state)
        for _ in range(num_steps):
            flat = self.units.draw(self.visible_eta(draw_binary(self.hidden_logits(flat))))
        return self.units.shaped(flat)

    # log Z

    @property
    def can_enumerate(self) -> bool:
        """Whether the hidden, or binary visible, units are few enough to sum over."""
        return min(self._enumerable()) <= MAX_ENUMERATED

    def _enumerable(self) -> tuple[int, int]:
        visible, hidden = self.weight.shape
        return hidden, visible if self.units.binary else MAX_ENUMERATED + 1

    @torch.no_grad()
    def exact_log_normalizer(self, chunk_size: int = 2**12) -> Tensor:
        r""":math:`\log Z` by summing over the hidden units (or, if they are fewer, binary visible ones), float64.

        :param chunk_size: states at a time.
        :raises ValueError: if there are more than 20 of either.
        """
        hidden, visible = self._enumerable()
        if not self.can_enumerate:
            raise ValueError(
                f"an exact log normaliser needs at most {MAX_ENUMERATED} hidden units (or binary visible units), got "
                f"{self.weight.shape[1]} and {self.weight.shape[0]}: estimate it, log_normalizer(method='ais')"
            )
        weight, b, c = (t.double() for t in (self.weight, self.visible_bias, self.hidden_bias))
        if visible < hidden:
            return log_sum_over_binary(lambda v: v @ b + softplus(v @ weight + c).sum(-1), visible, b, chunk_size)
        return log_sum_over_binary(
            lambda h: h @ c + self.units.log_partition(b + h @ weight.mT, b), hidden, b, chunk_size
        )

    @torch.no_grad()
    def exact_sample(self, num_samples: int, chunk_size: int = 2**12) -> Tensor:
        r"""Exact, independent draws: hidden units from their enumerated law, visible units given them.

        :param num_samples: how many.
        :param chunk_size: states at a time.
        :raises ValueError: for more than 20 hidden units.
        """
        hidden = self.weight.shape[1]
        if hidden > MAX_ENUMERATED:
            raise ValueError(f"exact draws need at most {MAX_ENUMERATED} hidden units, got {hidden}")
        weight, b, c = (t.double() for t in (self.weight, self.visible_bias, self.hidden_bias))
        drawn = draw_enumerated(
            lambda h: h @ c + self.units.log_partition(b + h @ weight.mT, b), hidden, num_samples, b, chunk_size
        )
        return self.units.shaped(self.units.draw(self.visible_eta(drawn.to(self.weight.dtype))))

    @torch.no_grad()
    def anneal(
        self, base_bias: Tensor, betas: Tensor, num_chains: int, target_samples: Tensor | None = None
    ) -> LogNormalizer:
        r"""Annealed importance sampling from independent visible units of a given bias :math:`a`.

        .. math:: f_\beta(v) = \exp\left( (1 - \beta) g(v, a) + \beta g(v, b) \right)
                  \prod_j \left(1 + e^{\beta (c_j + s(v)^\top W_{\cdot j})}\right)

        with a Gibbs sweep at each temperature, which is reversible on the visible units.

        :param base_bias: :math:`a`, flat.
        :param betas: rising from 0 to 1.
        :param num_chains: independent chains.
        :param target_samples: exact draws ``(num_chains, *event_shape)``: the reverse chain, from these.

        Source: R. Salakhutdinov and I. Murray (2008), "On the quantitative analysis of deep belief networks".
        """
        units, base = self.units, base_bias.to(self.visible_bias)

        def seen(flat: Tensor) -> _Seen:
            bias = units.bias_term(flat, base).double(), units.bias_term(flat, self.visible_bias).double()
            return flat, self.hidden_logits(flat), *bias

        def log_f(state: _Seen, beta: float) -> Tensor:
            _, logits, first, second = state
            return (1.0 - beta) * first + beta * second + softplus(beta * logits.double()).sum(-1)

        def reweight(state: _Seen, previous: float, beta: float) -> tuple[_Seen, Tensor]:
            return state, log_f(state, beta) - log_f(state, previous)

        def move(state: _Seen, beta: float) -> _Seen:
            hidden = draw_binary(beta * state[1])
            return seen(units.draw(torch.lerp(base, self.visible_eta(hidden), beta)))

        start = units.log_partition(base.double(), base.double()) + self.hidden_bias.shape[0] * math.log(2.0)
        if target_samples is None:
            first, direction = units.draw(base.expand(num_chains, -1)), "forward"
        else:
            first, direction, betas = units.flat(target_samples), "reverse", betas.flip(0)
        last, log_weights = anneal(seen(first), betas, reweight, move)
        return LogNormalizer.of_weights(log_weights, start, direction, units.shaped(last[0]), stacklevel=4)


#: flat visible units, log-odds of the hidden ones, and the two bias terms
_Seen = tuple[Tensor, Tensor, Tensor, Tensor]
