"""Phases of any losses as one objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pyro_dgm.infer.objectives.adapter import as_objective
from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.phase import Phase, main_phase

__all__ = ["Phased"]


class Phased(Objective):
    """Phases as an objective for :func:`pyro_dgm.fit`: adversarial training, wake and sleep, or any other alternation.

    Its loss is that of the main phase.

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
        super().__init__()
        if not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise TypeError(f"Phased takes one Phase or more, got {phases!r}")
        if learned is not None and not isinstance(learned, nn.Module):
            raise TypeError(f"learned must be a torch.nn.Module or None, got {type(learned).__name__}")
        self._phases = tuple(replace(phase, objective=as_objective(phase.objective)) for phase in phases)
        self.learned, self.metric = learned, main_phase(phases).measured

    @property
    def main(self) -> Objective:
        """The objective of the main phase."""
        return main_phase(self._phases).objective

    def phases(self, program: Any) -> tuple[Phase, ...]:
        """The phases, whatever the program."""
        return self._phases

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        return self.main.estimate(model, guide, args, kwargs, grad)

    def first_evaluation(self, module: Any, args: tuple, kwargs: dict) -> None:
        self.prepare(module.model, module.guide, args, kwargs)  # each phase is evaluated by itself

    def prepare(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> None:
        for phase in self._phases:
            phase.objective.prepare(model, guide, args, kwargs)

    def is_sum(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> bool:
        return all(phase.objective.is_sum(model, guide, args, kwargs) for phase in self._phases)

    def state_dict(self) -> dict[str, Any]:
        return {"phases": [phase.objective.state_dict() for phase in self._phases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for phase, saved in zip(self._phases, state["phases"], strict=True):
            phase.objective.load_state_dict(saved)

    def __repr__(self) -> str:
        inside = ", ".join(f"{p.role}: {p.steps} x {p.objective!r}" for p in self._phases)
        return f"Phased({inside})"
