"""What a number that training reports is: its name, its unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.infer import ReweightedWakeSleep, Trace_MMD
from pyro.infer.elbo import ELBO as PyroELBO

from pyro_dgm.ops.arguments import check_choice

__all__ = ["BOUND", "LOSS", "Metric", "metric_of"]


@dataclass(frozen=True)
class Metric:
    """The name, unit and direction of an objective's value per datum, as ``run.history`` holds it.

    The value is *minus* the loss per datum, and the loss itself where lower is better.  An objective says in its
    attribute ``metric`` what its value is; one of your own may do so too.

    :param name: what it is called, as ``"bound"``.
    :param unit: what it is measured in, as ``"nats per datum"``.
    :param better: ``"higher"``, ``"lower"``, or ``None`` for a value that does not say how good the program is: by such
        a one no best epoch is kept, and there is no early stopping.
    :raises ValueError: for another ``better``.

    Example::

        >>> from pyro_dgm.infer import ELBO
        >>> print(ELBO().metric)
        bound (nats per datum, higher is better)
    """

    name: str
    unit: str = "nats per datum"
    better: str | None = "higher"

    def __post_init__(self) -> None:
        check_choice("better", self.better, "higher", "lower", None)

    def of(self, loss: float) -> float:
        """The value, from the loss per datum."""
        return loss if self.better == "lower" else -loss

    def gain(self, value: float) -> float:
        """The value as a number of which more is better."""
        return -value if self.better == "lower" else value

    def __str__(self) -> str:
        direction = "neither way is better" if self.better is None else f"{self.better} is better"
        return f"{self.name} ({self.unit}, {direction})"


#: a lower bound of log p(x), or what is trained in its place
BOUND = Metric("bound")
#: what a loss of unknown meaning is
LOSS = Metric("loss", "per datum", "lower")


def metric_of(objective: Any) -> Metric:
    """What an objective's value is: its own ``metric``, a bound for Pyro's ELBOs, else a loss."""
    metric = getattr(objective, "metric", None)
    if isinstance(metric, Metric):
        return metric
    # Two of Pyro's are no bounds: a divergence of samples, and a pair of losses.
    if isinstance(objective, PyroELBO) and not isinstance(objective, (Trace_MMD, ReweightedWakeSleep)):
        return BOUND
    return LOSS
