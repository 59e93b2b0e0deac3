"""The contract of all objectives: Pyro's ``ELBO`` whose methods follow from one :meth:`~Objective.estimate`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import partial
from typing import Any, cast

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO as PyroELBO
from pyro.infer.elbo import ELBOModule
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_dgm.infer.objectives.metric import LOSS, Metric
from pyro_dgm.infer.objectives.phase import Phase
from pyro_dgm.programs import Program, owner_modules
from pyro_dgm.programs.parameters import leaves_the_store
from pyro_dgm.programs.structure import weak
from pyro_dgm.programs.tensors import batch_length

__all__ = ["Evaluation", "Objective", "ObjectiveModule"]

#: arguments of Pyro's ELBO that change no number, or next to none
_COMMON = {
    "max_plate_nesting", "vectorize_particles", "strict_enumeration_warning", "ignore_jit_warnings", "jit_options",
    "retain_graph",
}  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What an objective says of a batch, without gradients.

    :ivar loss: of the whole batch, summed over its data.
    :ivar metrics: values per datum, by what they are; the objective's own metric comes first.
    """

    loss: float
    metrics: Mapping[Metric, float]


class ObjectiveModule(ELBOModule):
    """``objective(model, guide)``: a module whose forward is the loss of a batch.

    Where model or guide is a bound method, the module that it belongs to is a submodule too, so that
    ``objective(vae.model, vae.guide).parameters()`` are the parameters to train.
    """

    def __init__(self, model: Any, guide: Any, elbo: Objective) -> None:
        super().__init__(model, guide, elbo)
        owners = [m for fn in (model, guide) for m in owner_modules(fn) if m is not fn]
        if owners:
            self._owners = torch.nn.ModuleList(dict.fromkeys(owners))
        self._take_learned()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().forward(*args, **kwargs)
        self._take_learned()  # built when the program is first seen
        return loss

    def _take_learned(self) -> None:
        learned = cast(Objective, self.elbo).learned
        if learned is not None and getattr(self, "learned", None) is not learned:
            self.learned = learned


class Objective(PyroELBO):
    """Base of everything that can be trained with.

    A subclass gives :meth:`estimate`, and whatever else differs from the defaults here.  It then works in
    :func:`pyro_dgm.fit`, in :class:`pyro.infer.SVI` and as ``objective(model, guide)``, a module whose value on a batch
    is the loss.  :class:`~pyro_dgm.infer.ParticleObjective` is the base of the ELBOs,
    :class:`~pyro_dgm.infer.EnergyObjective` that of the losses for energies.
    """

    #: what the value per datum is called in a run's history, its unit, and which way is better
    metric: Metric = LOSS
    #: what the value is of log p(x) in expectation: ``"lower"``, ``"upper"``, or ``None`` where it is no bound
    side: str | None = None
    #: networks that the objective trains beside the program's (a baseline, a discriminator); built by :meth:`prepare`
    learned: torch.nn.Module | None = None
    #: training evaluations so far; schedules are functions of it
    step = 0
    #: whether there is a differentiable loss; without one, :meth:`loss_and_grads` alone gives gradients
    differentiable = True
    #: whether an evaluation can be recorded as a graph of tensor operations
    capturable = True
    #: model and guide that :meth:`prepare` saw last, as weak references
    _seen: tuple[Callable[[], Any], Callable[[], Any]] | None = None

    # What a subclass gives

    @abstractmethod
    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        """The loss of a batch, a scalar summed over its data, and a surrogate loss with the estimator's gradient.

        The surrogate may be the loss itself; without ``grad`` it is ``None``.  Neither is checked or moved to the host,
        so that the evaluation can be recorded as a graph.
        """

    def check(self, program: Any, args: tuple, kwargs: dict) -> None:
        """Refuse a program or batch that the objective cannot work with; called eagerly, by :meth:`prepare`.

        Everything that reads values of tensors belongs here.  Random state and the objective's state stay as they were.

        :raises ValueError: saying what is wrong.
        """

    def build_learned(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> torch.nn.Module | None:
        """Make :attr:`learned`: of this batch's sizes, on its device, in its dtype; ``None`` where there is none.

        The surrogate must give these parameters the gradient of their own loss, and the program none of it.
        """
        return None

    def begin(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> None:
        """Make what the objective has of its own for a pair: networks, chains."""
        self.learned = self.build_learned(model, guide, args, kwargs)

    def phases(self, program: Any) -> tuple[Phase, ...]:
        """How a program is trained; by default with this loss, all parameters at once."""
        return (Phase("program", self),)

    def is_sum(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> bool:
        """Whether the loss of this batch is a sum over its data, so that parts of a batch may be added up."""
        return True

    def advance(self) -> None:
        """Called once before each training evaluation, never inside a captured graph.

        What changes from step to step (the weight of an annealed KL) is a tensor that is filled in place here: a
        captured graph reads tensors, and would freeze a number.
        """
        self.step += 1

    @property
    def scheduled(self) -> bool:
        """Whether :meth:`advance` changes what is evaluated, so that one graph cannot contain several steps."""
        return type(self).advance is not Objective.advance

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of :attr:`learned`, for an optimiser."""
        return [] if self.learned is None else list(self.learned.parameters())

    def buffers(self) -> list[Tensor]:
        """Tensors that an evaluation may write in place."""
        return [] if self.learned is None else list(self.learned.buffers())

    def state_dict(self) -> dict[str, Any]:
        """What going on with training needs of the objective; :attr:`learned` is saved with the weights."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.step = state.get("step", 0)  # energies did not count steps in earlier checkpoints

    @property
    def original(self) -> Any:
        """The object that the user gave, where this one adapts it."""
        return self

    # What follows from it

    def __call__(self, model: Any, guide: Any) -> Any:
        return ObjectiveModule(model, guide, self)

    def is_prepared(self, model: Any, guide: Any) -> bool:
        """Whether :meth:`prepare` would do nothing; no batch is needed then."""
        return self._seen is not None and self._seen[0]() == model and self._seen[1]() == guide

    def prepare(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> None:
        """:meth:`begin` with a pair that is not the last one, and :meth:`check` it.  Called before each evaluation."""
        if self.is_prepared(model, guide):
            return
        self.begin(model, guide, args, kwargs)
        self.check(Program(model, guide, own_store=False), args, kwargs)
        self._seen = weak(model), weak(guide)

    def first_evaluation(self, module: Any, args: tuple, kwargs: dict) -> None:
        """Evaluate ``module = objective(model, guide)`` once as training does, but not as a step of training."""
        self.prepare(module.model, module.guide, args, kwargs)
        self.estimate(module.model, module.guide, args, kwargs, grad=True)
        module._take_learned()

    def evaluator(self, model: Any, guide: Any) -> Callable[..., float]:
        """A function of a batch that gives its loss, without gradients."""
        return partial(self.loss, model, guide)

    @torch.no_grad()
    def evaluate(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Evaluation:
        """Loss and metrics of a batch."""
        loss = self.loss(model, guide, *args, **kwargs)
        return Evaluation(loss, {self.metric: self.metric.of(loss / batch_length((args, kwargs)))})

    @leaves_the_store
    @torch.no_grad()
    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss of the whole batch."""
        self.prepare(model, guide, args, kwargs)
        loss = self.estimate(model, guide, args, kwargs, grad=False)[0]
        return float(warn_if_nan(loss, "loss"))

    @leaves_the_store
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss of the whole batch as a tensor whose ``backward`` gives the estimator's gradient."""
        self.prepare(model, guide, args, kwargs)
        if not torch.is_grad_enabled():
            return self.estimate(model, guide, args, kwargs, grad=False)[0]
        self.advance()
        loss, surrogate = self.estimate(model, guide, args, kwargs, grad=True)
        if surrogate is None or surrogate is loss:
            return loss
        return loss.detach() + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss of the whole batch; gradients are added to the parameters' ``.grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(warn_if_nan(loss.detach(), "loss"))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        return tuple(poutine.trace(fn).get_trace(*args, **kwargs) for fn in (model, guide))

    def __getstate__(self) -> dict[str, Any]:  # weak references cannot be copied or sent to another process
        return {**self.__dict__, "_seen": None}

    def __repr__(self) -> str:
        """The number of particles, and what else was asked for that is no default."""
        known: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        given = [f for f in known if f.init and f.name not in _COMMON]
        shown = [f.name for f in given if f.name == "num_particles" or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"
