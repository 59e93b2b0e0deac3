"""Bidirectional Monte Carlo: a normaliser between a forward and a reverse annealing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_dgm.infer.smc.ais import AIS
from pyro_dgm.infer.smc.ends import SINGLE
from pyro_dgm.ops.log_normalizer import LogNormalizer
from pyro_dgm.programs.one_at_a_time import one_at_a_time

__all__ = ["Bracket", "bdmc"]


@dataclass(frozen=True)
class Bracket:
    r"""Stochastic bounds on a log normaliser, nats.

    :ivar lower: forward annealing; ``lower.value`` is below :math:`\log Z` in expectation.
    :ivar upper: reverse annealing from exact draws; ``upper.value`` is above it in expectation.
    """

    lower: LogNormalizer
    upper: LogNormalizer

    @property
    def gap(self) -> float:
        """Upper minus lower, nats: what is left unknown, up to the standard errors."""
        return float(self.upper.value) - float(self.lower.value)

    @property
    def gap_standard_error(self) -> float:
        """Standard error of :attr:`gap`."""
        return math.hypot(float(self.upper.standard_error), float(self.lower.standard_error))

    def __repr__(self) -> str:
        return (
            f"Bracket({float(self.lower.value):.4f} +- {float(self.lower.standard_error):.2g} to "
            f"{float(self.upper.value):.4f} +- {float(self.upper.standard_error):.2g} nats)"
        )


@one_at_a_time
def bdmc(ais: AIS, target_samples: Any, num_chains: int | None = None, seed: int | None = None) -> Bracket:
    r"""Bracket :math:`\log Z` between annealing towards the target and annealing away from exact draws of it.

    .. math:: \mathbb{E} \log \tfrac1C \sum_c w_c \le \log Z \le -\mathbb{E} \log \tfrac1C \sum_c \tilde w_c

    with :math:`w` the weights of forward chains and :math:`\tilde w` those of reverse ones.  Where the two meet both
    are right, whatever their standard errors say; a gap is a bound on the bias.  It takes exact draws: of a model small
    enough to enumerate, of a posterior given data that were simulated from the model
    (``analysis.log_likelihood(method="bdmc")`` makes them), or of a Gaussian.

    :param ais: path, kernel and temperatures.
    :param target_samples: exact, independent draws of the target, ``(chains, *event_shape)`` or a dict of them.
    :param num_chains: forward chains, as many as draws by default.
    :param seed: of all draws; without it they follow torch's global generator.
    :returns: :class:`Bracket`.

    Source: R. Grosse, Z. Ghahramani and R. Adams (2015), "Sandwiching the marginal likelihood using bidirectional Monte
    Carlo", arXiv:1511.02543.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_dgm.infer.smc import AIS, bdmc
        >>> target = dist.Normal(torch.ones(2), 0.5).to_event(1)  # log Z = 0
        >>> ais = AIS(dist.Normal(torch.zeros(2), 2.0).to_event(1), target, num_temperatures=50)
        >>> _ = torch.manual_seed(0)
        >>> bracket = bdmc(ais, target.sample((100,)), seed=0)
        >>> abs(float(bracket.lower)) < 0.3 and abs(float(bracket.upper)) < 0.3
        True
    """
    if not isinstance(ais, AIS):
        raise TypeError(f"ais must be an AIS, got {type(ais).__name__}")
    count = len(ais.ends.named(target_samples)[SINGLE if ais.ends.single else next(iter(ais.ends.initial))])
    lower = ais.forward(num_chains or count, seed)
    upper = ais.reverse(target_samples, None if seed is None else seed + 1)
    return Bracket(lower, upper)
