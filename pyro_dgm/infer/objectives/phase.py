"""The phases of a training step: which loss trains which parameters, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_dgm.infer.objectives.metric import Metric, metric_of
from pyro_dgm.ops.arguments import check_count

__all__ = ["ROLES", "Phase", "Phased"]

#: what a phase may train, and whose parameters that is (see :func:`pyro_dgm.fit`, ``optimizer``)
ROLES: dict[str, tuple[str, ...]] = {
    "program": ("model", "guide", "shared", ""),
    "model": ("model", "shared"),
    "guide": ("guide", "shared"),
    "objective": ("objective",),
}


@dataclass(frozen=True)
class Phase:
    """A part of each training step: a loss, the parameters that follow its gradient, and the number of updates.

    An objective whose ``phases(program)`` gives several of these is trained in phases: :func:`pyro_dgm.fit` runs them
    in turn on each step, every one with an optimiser over its own parameters.  A step is over as many batches as the
    largest ``steps``: the i-th update of each phase sees the i-th batch.  The last phase is the main one, whose value
    is ``run.history["train"]``; the others are in the history under their role.

    :param role: what is trained: ``"program"`` (all parameters of model and guide), ``"model"``, ``"guide"``, or
        ``"objective"`` (networks that the objective has beside the program).
    :param objective: what gives the loss: anything that :func:`pyro_dgm.fit` takes as objective.
    :param steps: updates in each step.
    :param metric: what minus its loss per datum is called; by default what the objective says.
    :raises ValueError: for another role, or ``steps`` below 1.
    """

    role: str
    objective: Any
    steps: int = 1
    metric: Metric | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(map(repr, ROLES))}, got {self.role!r}")
        check_count("steps", self.steps)

    @property
    def measured(self) -> Metric:
        """The metric of the phase."""
        return metric_of(self.objective) if self.metric is None else self.metric


class Phased:
    """Phases as an objective for :func:`pyro_dgm.fit`: adversarial training, wake and sleep, or any other alternation.

    Its loss is that of the last phase.

    :param phases: run in this order on each step.
    :param learned: networks that are trained beside the program, by the phases whose role is ``"objective"``.
    :raises TypeError: for anything but phases.

    Example, a generative adversarial network (Goodfellow et al., 2014, arXiv:1406.2661) with two updates of the
    discriminator a step::

        >>> import pyro, pyro.distributions as dist, torch, pyro_dgm
        >>> from torch.nn.functional import softplus
        >>> from pyro_dgm.infer import Phase, Phased
        >>> class Generator(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(2, 2)
        ...     def model(self, x):
        ...         with pyro.plate("data", len(x)):
        ...             return self.net(pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
        ...     def guide(self, x):
        ...         pass
        >>> critic = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> def discriminate(model, guide):
        ...     return lambda x: (softplus(-critic(x)) + softplus(critic(model(x).detach()))).sum()
        >>> def generate(model, guide):
        ...     return lambda x: softplus(-critic(model(x))).sum()
        >>> gan = Phased(Phase("objective", discriminate, steps=2), Phase("program", generate), learned=critic)
        >>> run = pyro_dgm.fit(Generator(), torch.randn(64, 2), objective=gan, epochs=2, batch_size=16, seed=0,
        ...                    progress=False)
        >>> run.steps, len(run.history["objective"])
        (4, 2)
    """

    def __init__(self, *phases: Phase, learned: nn.Module | None = None) -> None:
        if not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise TypeError(f"Phased takes one Phase or more, got {phases!r}")
        if learned is not None and not isinstance(learned, nn.Module):
            raise TypeError(f"learned must be a torch.nn.Module or None, got {type(learned).__name__}")
        self._phases, self.learned = phases, learned

    @property
    def metric(self) -> Metric:
        """The metric of the last phase."""
        return self._phases[-1].measured

    def phases(self, program: Any) -> tuple[Phase, ...]:
        """The phases, whatever the program."""
        return self._phases

    def __call__(self, model: Any, guide: Any) -> nn.Module:
        return _LastPhase(self._phases[-1].objective(model, guide), self.learned)


class _LastPhase(nn.Module):
    def __init__(self, loss: Any, learned: nn.Module | None) -> None:
        super().__init__()
        self.loss, self.learned = loss, learned

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.loss(*args, **kwargs)
