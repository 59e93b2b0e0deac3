"""Contrastive divergence: a few transitions from the data, or from chains that go on from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.energies.base import EnergyObjective, EnergySite
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.ops.arguments import check_choice, check_count, check_number
from pyro_dgm.ops.random_state import forked_rng

__all__ = ["ContrastiveDivergence", "PersistentCD"]


@dataclass(eq=False, repr=False)
class ContrastiveDivergence(EnergyObjective):
    r"""Contrastive divergence, CD-k: energies down at the data, up at what k transitions make of the data.

    .. math:: L(\theta) = \sum_n F_\theta(x_n) - F_\theta(x_n^{(k)}), \qquad
              x_n^{(k)} \sim T_\theta^k(\cdot \mid x_n)

    with the gradient taken through :math:`F_\theta` alone.  For chains that have reached the model's law it is
    the gradient of :math:`-\sum_n \log p_\theta(x_n)`; a few steps from the data are a biased, quick and quiet
    estimate of it, which leaves alone the modes that the data do not have.  Take it to begin with, or where mixing is
    fast; :class:`PersistentCD` for likelihoods.

    ``run.history["train"]`` holds :math:`F(x^{(k)}) - F(x)` per datum: how much lower the energy of data is than that
    of their chains.  It tends to zero as the model comes to fit *and* when chains do not move: it is no likelihood, and
    neither way is better, so that no best epoch is kept by it.

    :param num_steps: k, transitions.
    :raises ValueError: for ``num_steps`` below 1; in training, for energies that are not finite.

    Source: G. Hinton (2002), "Training products of experts by minimizing contrastive divergence".

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> rbm = pyro_dgm.models.RBM(num_visible=6, num_hidden=3)
        >>> x = torch.randint(2, (10, 6)).float()
        >>> cd = pyro_dgm.infer.ContrastiveDivergence(num_steps=1)
        >>> cd(rbm.model, rbm.guide)(x).backward()
        >>> rbm.weight.grad.shape
        torch.Size([6, 3])
    """

    metric = Metric("energy gap of chains and data", better=None)

    num_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_steps", self.num_steps)

    def negative_state(self, site: EnergySite, move: bool) -> Tensor:
        """Where the chains of this step end, without gradients.

        :param move: whether chains that go on from step to step are moved: not in an evaluation.
        """
        return site.distribution.mcmc_step(site.distribution.state_of(site.value), self.num_steps)

    def surrogate(self, site: EnergySite) -> Tensor:
        positive = self.check_energy(site.distribution.log_prob(site.value), site, "data")
        move = torch.is_grad_enabled()
        with torch.no_grad():
            state = self.negative_state(site, move)
        negative = self.check_energy(site.distribution.state_log_prob(state), site, "negative samples")
        return site.num_data * negative.mean() - positive.sum()


@dataclass(eq=False, repr=False)
class PersistentCD(ContrastiveDivergence):
    r"""Persistent contrastive divergence, or stochastic maximum likelihood: the chains go on where they were.

    .. math:: L(\theta) = \sum_n F_\theta(x_n) - \frac{N}{C} \sum_{c=1}^{C} F_\theta(\tilde x_c), \qquad
              \tilde x_c \leftarrow T_\theta^k(\cdot \mid \tilde x_c)

    Parameters change little from step to step, so chains that are never restarted stay near the model's law, and the
    gradient near that of the log-likelihood.  Too large a learning rate shows as chains that are left behind: the
    parameters oscillate.  Let it fall.

    With a ``buffer`` of more states than ``num_chains``, each step takes some at random, and puts them back moved; a
    share of ``reinit`` of them begins anew: the replay buffer of deep energy models, whose chains mix badly.
    Chains that have just begun count in the gradient and in the history: energies far above the data's there push the
    energy up where it is high enough, so that without a mode to look for ``reinit`` is best left at 0.

    The chains belong to this objective, and go with its ``state_dict`` into a checkpoint; seeing another model, it
    starts new ones.  In evaluation (without gradients) they are used and not moved.  ``run.history["train"]``
    holds :math:`\bar F(\tilde x) - F(x)` per datum, as for :class:`ContrastiveDivergence`.

    :param num_steps: k, transitions a step.
    :param num_chains: C; by default as many as the first batch has data.
    :param buffer: number of states kept, at least ``num_chains``; by default the chains alone.
    :param reinit: probability that a chain taken begins anew, in [0, 1].
    :param initial: where chains begin: ``"noise"``, the distribution's own ``initial_state``, or ``"data"``, the batch.
    :raises ValueError: for a number out of range; in training, for energies that are not finite.

    Source: T. Tieleman (2008), "Training restricted Boltzmann machines using approximations to the likelihood
    gradient"; L. Younes (1999), "On the convergence of Markovian stochastic algorithms with rapidly decreasing
    ergodicity rates"; Y. Du and I. Mordatch (2019), "Implicit generation and generalization in energy-based models",
    arXiv:1903.08689 (replay buffer).

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> rbm = pyro_dgm.models.RBM(num_visible=6, num_hidden=3)
        >>> x = torch.randint(2, (10, 6)).float()
        >>> pcd = pyro_dgm.infer.PersistentCD(num_steps=1, num_chains=20)
        >>> pcd(rbm.model, rbm.guide)(x).backward()
        >>> pcd.chains.shape
        torch.Size([20, 6])
    """

    metric = Metric("energy gap of persistent chains and data", better=None)
    num_chains: int | None = None
    buffer: int | None = None
    reinit: float = 0.0
    initial: str = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        for argument in ("num_chains", "buffer"):
            check_count(argument, getattr(self, argument), optional=True)
        if self.buffer is not None and self.buffer < (self.num_chains or 1):
            raise ValueError(f"buffer must hold at least num_chains = {self.num_chains} states, got {self.buffer}")
        check_number("reinit", self.reinit, within="[0, 1]")
        check_choice("initial", self.initial, "noise", "data")
        #: states of the chains, or of the whole buffer; ``None`` before the first batch
        self.chains: Tensor | None = None
        self._size = self.num_chains  # C, once it is known

    def begin(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> None:
        """Begin chains, unless a first program finds those of a checkpoint."""
        with forked_rng():
            site = self.energy_site(model, args, kwargs)
        if self.chains is not None and self._seen is None:
            self.chains = self.chains.to(site.value.device)
            return
        size = self._size or site.num_data
        if self.buffer is None:
            self._size = size
        with torch.no_grad():
            self.chains = self._new_states(site, max(size, self.buffer or size)).clone()

    def negative_state(self, site: EnergySite, move: bool) -> Tensor:
        """The persistent chains of this step, moved, or as they are in an evaluation."""
        chains = self.chains
        assert chains is not None
        size = min(self._size or site.num_data, len(chains))
        index = None if size == len(chains) else torch.randperm(len(chains), device=chains.device)[:size]
        state = chains if index is None else chains[index]
        if not move:
            return state
        if self.reinit > 0.0:
            anew = torch.rand(size, device=state.device) < self.reinit
            fresh = self._new_states(site, size)
            state = torch.where(anew.reshape(-1, *(1 for _ in state.shape[1:])), fresh, state)
        state = site.distribution.mcmc_step(state, self.num_steps)
        # In place, so that a recorded graph goes on with the same tensor.
        if index is None:
            chains.copy_(state)
        else:
            chains.index_copy_(0, index, state)
        return state

    def _new_states(self, site: EnergySite, count: int) -> Tensor:
        if self.initial == "noise":
            return site.distribution.initial_state(count)
        rows = torch.randint(site.num_data, (count,), device=site.value.device)
        return site.distribution.state_of(site.value[rows])

    def buffers(self) -> list[Tensor]:
        return [] if self.chains is None else [self.chains]

    def state_dict(self) -> dict[str, Any]:
        """The chains, for a checkpoint."""
        chains = None if self.chains is None else self.chains.clone()
        return {**super().state_dict(), "chains": chains, "num_chains": self._size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        chains, self._size = state["chains"], state["num_chains"]
        if self.chains is not None and chains is not None and chains.shape == self.chains.shape:
            self.chains.copy_(chains)
        else:
            self.chains = chains
