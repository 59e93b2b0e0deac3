"""Pyro's own ELBOs and plain callables as objectives of the library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.infer.elbo import ELBO as PyroELBO
from torch import Tensor

from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.metric import BOUND, metric_of

__all__ = ["as_objective", "check_objective", "scalar_loss"]


def as_objective(objective: Any, argument: str = "objective") -> Objective:
    """What can be trained with, as an :class:`~pyro_dgm.infer.Objective`.

    :param objective: an objective, which is given back; any :class:`pyro.infer.ELBO`; or a callable that makes of
        model and guide a callable of the batch that gives the loss.
    :param argument: its name, for messages.
    :raises TypeError: for anything else, saying what came.
    """
    if isinstance(objective, Objective):
        return objective
    check_objective(argument, objective)
    return AdaptedELBO(objective) if isinstance(objective, PyroELBO) else AdaptedCallable(objective)


def check_objective(argument: str, objective: Any) -> None:
    """Refuse what cannot be called with a model and a guide."""
    if isinstance(objective, type):
        raise TypeError(f"{argument} must be an instance, {objective.__name__}(), got the class itself")
    name = type(objective).__name__
    if name.startswith("Jit") and isinstance(objective, PyroELBO):
        raise TypeError(
            f"{argument} must not be one of Pyro's {name}: torch.jit is deprecated, and it takes parameters from the "
            f"global param store alone. Take {name.removeprefix('Jit')}(), which fit compiles by itself (compile=)"
        )
    if not callable(objective):
        raise TypeError(f"{argument} must be an ELBO or a callable of (model, guide), got {type(objective).__name__}")


class _Adapted(Objective):
    """What an adapter of either kind takes from the object that it adapts."""

    #: Pyro's own objectives read the loss's value on every step, and a callable may do anything
    capturable = False

    def __init__(self, original: Any) -> None:
        super().__init__(num_particles=getattr(original, "num_particles", 1))
        self._original = original
        self.metric = metric_of(original)

    @property
    def original(self) -> Any:
        return self._original

    def is_prepared(self, model: Any, guide: Any) -> bool:
        return True  # the adapted objective inspects programs by itself

    def first_evaluation(self, module: Any, args: tuple, kwargs: dict) -> None:
        if self.differentiable:
            module(*args, **kwargs)
        else:
            self._original.loss_and_grads(module.model, module.guide, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        # The state of a module is saved with the weights.
        has_state = hasattr(self._original, "state_dict") and not isinstance(self._original, torch.nn.Module)
        return self._original.state_dict() if has_state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._original.load_state_dict(state)

    def __repr__(self) -> str:
        return repr(self._original)


class AdaptedELBO(_Adapted):
    """One of Pyro's ELBOs.

    :class:`pyro.infer.TraceGraph_ELBO` and :class:`pyro.infer.ReweightedWakeSleep` have no differentiable loss; of the
    pair that the latter's ``loss`` is, the model's is taken.
    """

    def __init__(self, original: PyroELBO) -> None:
        super().__init__(original)
        self.differentiable = hasattr(original, "differentiable_loss")
        self.side = "lower" if self.metric == BOUND else None

    def __call__(self, model: Any, guide: Any) -> Any:
        return self._original(model, guide)

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        if grad and self.differentiable:
            loss = scalar_loss(self._original.differentiable_loss(model, guide, *args, **kwargs))
            return loss, loss
        if grad:
            raise TypeError(f"{type(self._original).__name__} has no differentiable loss, only loss_and_grads")
        with torch.no_grad():
            return torch.as_tensor(_first(self._original.loss(model, guide, *args, **kwargs))), None

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(_first(self._original.loss(model, guide, *args, **kwargs)))

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        return float(_first(self._original.loss_and_grads(model, guide, *args, **kwargs)))


class AdaptedCallable(_Adapted):
    """A callable of model and guide that makes a callable of the batch: its value is the loss."""

    def __init__(self, original: Callable[[Any, Any], Any]) -> None:
        super().__init__(original)
        self._made: list[tuple[Any, Any, Any]] = []

    def __call__(self, model: Any, guide: Any) -> Any:
        for known_model, known_guide, made in self._made:
            if known_model == model and known_guide == guide:
                return made
        made = self._original(model, guide)
        self._made = [*self._made[-3:], (model, guide, made)]
        return made

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        loss = self(model, guide)(*args, **kwargs)
        if grad:
            return scalar_loss(loss), loss
        return torch.as_tensor(_first(loss)), None

    def evaluator(self, model: Any, guide: Any) -> Callable[..., float]:
        # What was made before is taken: a module with parameters of its own has been trained.
        evaluate = getattr(self._original, "loss", None)
        made = self(model, guide) if evaluate is None else partial(evaluate, model, guide)

        def loss(*args: Any, **kwargs: Any) -> float:
            with torch.no_grad():
                return float(_first(made(*args, **kwargs)))

        return loss


def _first(loss: Any) -> Any:
    return loss[0] if isinstance(loss, tuple) else loss


def scalar_loss(loss: Any) -> Tensor:
    """Pass on a loss that can be differentiated.

    :raises TypeError: for anything else.
    """
    if not (isinstance(loss, Tensor) and loss.requires_grad and loss.dim() == 0):
        raise TypeError(
            "objective(model, guide)(*batch) must give a scalar tensor that depends on the parameters, got "
            f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}"
        )
    return loss
