"""The law of a deep Boltzmann machine's visible units, bounded below by mean field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import softplus

from pyro_dgm.distributions.rbm import RBMDistribution
from pyro_dgm.distributions.unnormalized import UnnormalizedDistribution
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.binary import MAX_ENUMERATED, binary_states
from pyro_dgm.ops.log_normalizer import LogNormalizer

__all__ = ["DBMDistribution"]


class DBMDistribution(UnnormalizedDistribution):
    r"""Visible units of a deep Boltzmann machine with layers :math:`h_0 = v, h_1, \ldots, h_L` of binary units.

    .. math:: p(v, h_1, \ldots, h_L) \propto \exp\left( \sum_{l=0}^{L} b_l^\top h_l
              + \sum_{l=0}^{L-1} h_l^\top W_l h_{l+1} \right)

    Given the odd layers the even ones are independent units, and the other way round: it is a restricted Boltzmann
    machine (:attr:`joint`) between even layers, visible ones among them, and odd layers.  Chains, :math:`\log Z` and
    annealing are that machine's; chain states hold the even layers.

    What is hard is to sum the hidden layers out.  ``log_prob`` is the *variational lower bound* on the unnormalised
    log-density,

    .. math:: \log p^*(v) \ge \max_\mu \sum_h q_\mu(h) \left( -E(v, h) - \log q_\mu(h) \right),

    with :math:`q_\mu` independent Bernoulli units, by ``num_mean_field`` rounds of coordinate ascent, and the odd
    layers summed exactly.  Its gradient takes :math:`\mu` as given.  :meth:`exact_log_prob` sums where layers are
    small.

    :param weights: :math:`W_l`, ``(units of l, units of l + 1)``.
    :param biases: :math:`b_l`, one more than weights.
    :param num_mean_field: rounds.
    :param num_steps: Gibbs sweeps of ``sample``.
    :raises ValueError: for shapes that do not fit.

    Source: R. Salakhutdinov and G. Hinton (2009), "Deep Boltzmann machines".

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import DBMDistribution
        >>> dbm = DBMDistribution([torch.zeros(3, 2), torch.zeros(2, 2)], [torch.zeros(n) for n in (3, 2, 2)])
        >>> round(float(dbm.log_prob(torch.ones(3))), 4)  # 4 log 2: nothing couples, and the bound is exact
        2.7726
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        num_mean_field: int = 30,
        num_steps: int = 1000,
        validate_args: bool | None = None,
    ) -> None:
        sizes = [b.shape[0] for b in biases]
        shapes = [tuple(w.shape) for w in weights]
        if len(sizes) < 2 or shapes != list(zip(sizes[:-1], sizes[1:], strict=True)):
            raise ValueError(f"weights must join neighbouring layers of sizes {sizes}, got shapes {shapes}")
        check_count("num_mean_field", num_mean_field)
        self.sizes, self.num_mean_field = sizes, num_mean_field

        def between(i: int, j: int) -> Tensor:
            if abs(i - j) > 1:
                return weights[0].new_zeros(sizes[i], sizes[j])
            return weights[i] if j > i else weights[j].mT

        even, odd = range(0, len(sizes), 2), range(1, len(sizes), 2)
        rows = [torch.cat([between(i, j) for j in odd], -1) for i in even]
        #: the machine between even and odd layers
        self.joint = RBMDistribution(
            torch.cat(rows), torch.cat(list(biases[::2])), torch.cat(list(biases[1::2])), None, num_steps, False
        )
        super().__init__(torch.Size(), torch.Size(sizes[:1]), num_steps, validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.boolean, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The variational lower bound on the unnormalised log-density, nats."""
        if self._validate_args:
            self._validate_sample(value)
        mu = self.mean_field(value)
        entropy = torch.special.entr(mu).sum(-1) + torch.special.entr(1.0 - mu).sum(-1)
        bound = self.joint.log_prob(torch.cat([value, mu], -1)) + entropy
        return bound.expand(torch.broadcast_shapes(bound.shape, self.batch_shape))

    @torch.no_grad()
    def mean_field(self, value: Tensor) -> Tensor:
        r""":math:`\mu` of the even hidden layers (2, 4, ...), side by side, ``(..., units)``, in [0, 1]."""
        visible, joint = self.sizes[0], self.joint
        mu = value.new_full((*value.shape[:-1], joint.weight.shape[0] - visible), 0.5)
        for _ in range(self.num_mean_field):
            odd = joint.hidden_logits(torch.cat([value, mu], -1)).sigmoid()
            mu = (joint.visible_bias[visible:] + odd @ joint.weight[visible:].mT).sigmoid()
        return mu

    @torch.no_grad()
    def exact_log_prob(self, value: Tensor, chunk_size: int = 2**12) -> Tensor:
        r""":math:`\log p^*(v)` without :math:`\log Z`, by summing over even hidden layers (or odd ones), float64.

        :raises ValueError: if both have more than 20 units.
        """
        joint, visible = self.joint, self.sizes[0]
        even, odd = joint.weight.shape[0] - visible, joint.weight.shape[1]
        if min(even, odd) > MAX_ENUMERATED:
            raise ValueError(
                f"an exact density needs at most {MAX_ENUMERATED} units in the even or odd hidden layers, got {even} "
                f"and {odd}"
            )
        weight, b, c = (t.double() for t in (joint.weight, joint.visible_bias, joint.hidden_bias))
        v = value.double()
        first = c + v @ weight[:visible]
        total: Tensor | None = None
        for h in binary_states(min(even, odd), max(1, chunk_size // max(1, v[..., 0].numel())), b):
            if even <= odd:
                inputs = first[..., None, :] + h @ weight[visible:]
                log_f = h @ b[visible:] + softplus(inputs).sum(-1)
            else:
                log_f = first @ h.mT + softplus(b[visible:] + h @ weight[visible:].mT).sum(-1)
            part = log_f.logsumexp(-1)
            total = part if total is None else torch.logaddexp(total, part)
        assert total is not None
        return v @ b[:visible] + total

    # Chains of the even layers

    def initial_state(self, num_chains: int) -> Tensor:
        return self.joint.initial_state(num_chains)

    def mcmc_step(self, state: Tensor, num_steps: int = 1) -> Tensor:
        return self.joint.mcmc_step(state, num_steps)

    @torch.no_grad()
    def state_of(self, value: Tensor) -> Tensor:
        mu = self.mean_field(value)
        return torch.cat([value, (torch.rand_like(mu) < mu).to(mu.dtype)], -1)

    def value_of(self, state: Tensor) -> Tensor:
        return state[..., : self.sizes[0]]

    def state_log_prob(self, state: Tensor) -> Tensor:
        return self.joint.log_prob(state)

    # log Z

    @property
    def can_enumerate(self) -> bool:
        """Whether odd or even layers are few enough units to sum over."""
        return self.joint.can_enumerate

    def exact_log_normalizer(self) -> Tensor:
        """:math:`\\log Z` by enumeration of the even or odd layers, float64."""
        return self.joint.exact_log_normalizer()

    def exact_sample(self, num_samples: int) -> Tensor:
        """Exact, independent draws of the even layers: chain states."""
        return self.joint.exact_sample(num_samples)

    def anneal(
        self, base_bias: Tensor, betas: Tensor, num_chains: int, target_samples: Tensor | None = None
    ) -> LogNormalizer:
        """Annealed importance sampling of the joint machine, from visible units of ``base_bias``.

        :param target_samples: chain states, for the reverse direction.
        """
        base = torch.zeros_like(self.joint.visible_bias)
        base[: self.sizes[0]] = base_bias
        return self.joint.anneal(base, betas, num_chains, target_samples)
