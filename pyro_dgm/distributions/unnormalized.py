"""The contract of distributions known up to a constant: what training and sampling ask of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_dgm.ops.arguments import check_count

__all__ = ["UnnormalizedDistribution"]


class UnnormalizedDistribution(TorchDistribution):
    r"""Base of the distributions whose density is known up to a constant: :math:`p(x) = e^{-F(x)} / Z`.

    ``log_prob(x)`` is :math:`-F(x)` in nats, differentiable in the parameters, *without* :math:`\log Z`, even where it
    is known: :math:`\log Z` depends on the parameters, and a number in its place would have the wrong gradient.  Where
    it is known, :attr:`log_normalizer` has it, and :meth:`normalized_log_prob` takes it off.

    The negative phase of contrastive divergence, and any sampler, run on *chain states*, which are values unless a
    distribution keeps more in them (the hidden layers of a deep Boltzmann machine).  A subclass gives

    - :meth:`initial_state`: where chains begin without data,
    - :meth:`mcmc_step`: transitions that leave :math:`p` invariant,

    and, where a state is no value, :meth:`state_of`, :meth:`value_of` and :meth:`state_log_prob`.  Random numbers come
    from torch's global generator, as everywhere in Pyro.

    ``sample`` runs chains from :meth:`initial_state` for :attr:`num_steps` transitions: draws are approximate, and
    independent of each other.

    :param batch_shape: as of any distribution; all elements have the same law.
    :param event_shape: shape of one value.
    :param num_steps: transitions of ``sample``.
    """

    #: whether ``log_prob`` is that of a normalised density; objectives that need one read this
    normalized = False
    has_rsample = False
    arg_constraints: dict[str, Any] = {}

    def __init__(
        self, batch_shape: torch.Size, event_shape: torch.Size, num_steps: int = 1000, validate_args: bool | None = None
    ) -> None:
        check_count("num_steps", num_steps)
        self.num_steps = num_steps
        self._log_normalizer: Tensor | None = None
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    @property
    def log_normalizer(self) -> Tensor | None:
        r""":math:`\log Z` in nats where it is known, a scalar, else ``None``."""
        return self._log_normalizer

    @log_normalizer.setter
    def log_normalizer(self, value: Any) -> None:
        if value is not None:
            value = torch.as_tensor(float(value), dtype=torch.float64)
            if not bool(torch.isfinite(value)):
                raise ValueError(f"log_normalizer must be finite, got {float(value)}")
        self._log_normalizer = value

    def normalized_log_prob(self, value: Tensor) -> Tensor:
        r""":math:`\log p(x) = -F(x) - \log Z`, nats.

        :raises ValueError: where :attr:`log_normalizer` is not known.
        """
        if self._log_normalizer is None:
            raise ValueError(
                f"the log normaliser of this {type(self).__name__} is not known: estimate it (infer.smc.AIS, or the "
                "model's own log_normalizer()) and set .log_normalizer"
            )
        log_prob = self.log_prob(value)
        return log_prob - self._log_normalizer.to(log_prob)

    # What a subclass gives

    @abstractmethod
    def initial_state(self, num_chains: int) -> Tensor:
        """Chain states to begin at without data, ``(num_chains, ...)``."""

    @abstractmethod
    def mcmc_step(self, state: Tensor, num_steps: int = 1) -> Tensor:
        """``num_steps`` transitions of every chain, each leaving the distribution invariant; without gradients.

        :param state: ``(chains, ...)``.
        """

    def state_of(self, value: Tensor) -> Tensor:
        """Chain states with these values, ``(N, *event_shape)``: the value, or it and hidden units drawn for it."""
        return value

    def value_of(self, state: Tensor) -> Tensor:
        """The values in chain states."""
        return state

    def state_log_prob(self, state: Tensor) -> Tensor:
        """Unnormalised log-density of chain states, whose gradient the negative phase takes."""
        return self.expand(torch.Size()).log_prob(self.value_of(state))  # there may be any number of chains

    # What is the same for all

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update({k: v for k, v in self.__dict__.items() if k != "_batch_shape"})
        new._batch_shape = torch.Size(batch_shape)
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Approximate draws, one from each of as many chains."""
        shape = torch.Size(sample_shape) + self.batch_shape
        state = self.mcmc_step(self.initial_state(shape.numel()), self.num_steps)
        return self.value_of(state).reshape(shape + self.event_shape)
