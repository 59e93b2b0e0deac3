"""What may watch a training run and steer it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_dgm.ops.arguments import check_count, check_number

if TYPE_CHECKING:
    from pyro_dgm.infer.train.run import Run

__all__ = ["Callback", "EarlyStopping"]


#: what a callback may have a method for
EVENTS = ("on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end")


class Callback:
    """Base of callbacks: override what you need.  A plain function ``f(run)`` serves as ``on_epoch_end``.

    A callback that has state puts it in ``state_dict`` and takes it back in ``load_state_dict``, as optimisers do:
    then a resumed run goes on as if it had not been stopped.  The state may hold tensors, numbers, strings, tuples,
    lists and dicts (nothing is unpickled).

    Example::

        >>> from pyro_dgm.infer.train.callbacks import Callback
        >>> class StopAt(Callback):
        ...     def __init__(self, bound):
        ...         self.bound = bound
        ...     def on_epoch_end(self, run):
        ...         if run.history["train"][-1] > self.bound:
        ...             run.stop(f"the bound is above {self.bound} nats")
    """

    def on_fit_start(self, run: Run) -> None:
        """Before the first epoch, and after a resumed run was restored."""

    def on_step_end(self, run: Run) -> None:
        """After each step, ``run.steps`` being its number; where one is defined, steps are not joined in blocks."""

    def on_epoch_end(self, run: Run) -> None:
        """After the epoch's validation and before its checkpoint; ``run.history`` has the epoch."""

    def on_fit_end(self, run: Run) -> None:
        """After the last epoch; not after an interruption or an error."""

    def state_dict(self) -> dict[str, Any]:
        """State that a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""


class EarlyStopping(Callback):
    """Stop when the bound has not got better for a while; the program ends with its best weights.

    What is watched, and which way is better, is the objective's ``metric``: a bound rises, a loss falls.

    :param patience: epochs to wait for a better value, at least 1.
    :param min_delta: smallest gain that counts, in the metric's unit (nats per datum for a bound).
    :param monitor: ``"validation"``, ``"train"``, or ``None`` for the validation bound where there is one.
    :param restore_best: give the program the weights of its best epoch when the run ends (checkpoints keep the
        weights of their own epoch).
    :raises ValueError: for a ``patience`` below 1, a negative ``min_delta`` or an unknown ``monitor``; before training,
        for a metric of which neither way is better.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> run = pyro_dgm.fit(m, torch.randn(20, 3), validation=torch.randn(20, 3), epochs=3, seed=0,
        ...                    early_stopping=pyro_dgm.infer.train.callbacks.EarlyStopping(patience=2), progress=False)
        >>> run.epochs
        3
    """

    def __init__(
        self, patience: int = 10, min_delta: float = 0.0, monitor: str | None = None, restore_best: bool = True
    ) -> None:
        check_count("patience", patience, why="epochs")
        check_number("min_delta", min_delta)
        if not min_delta >= 0:
            raise ValueError(f"min_delta must be at least 0 (nats per datum), got {min_delta!r}")
        if monitor not in (None, "train", "validation"):
            raise ValueError(f"monitor must be 'train', 'validation' or None, got {monitor!r}")
        self.patience, self.min_delta = patience, float(min_delta)
        self.monitor, self.restore_best = monitor, restore_best
        self.best = -float("inf")  # as a gain: of a loss, minus the loss
        self.best_epoch = 0
        self.waited = 0
        self.weights: dict[str, Tensor] = {}

    def on_fit_start(self, run: Run) -> None:
        if self.waited >= self.patience:
            self._stop(run)

    def on_epoch_end(self, run: Run) -> None:
        monitor = self.monitor or run.monitor
        if not run.history[monitor]:
            raise ValueError("EarlyStopping(monitor='validation') needs fit(validation=...)")
        gain = run.measured[monitor].gain(run.history[monitor][-1])
        if gain > self.best + self.min_delta:
            self.best, self.best_epoch, self.waited = gain, run.epochs, 0
            if self.restore_best:
                self.weights = run.weights()
            return
        self.waited += 1
        if self.waited >= self.patience:
            self._stop(run)

    def on_fit_end(self, run: Run) -> None:
        if self.restore_best and self.weights:
            run.state.load({**run.state.snapshot(), **self.weights})

    def check(self, run: Run) -> None:
        """Refuse a metric that does not say how good the program is.

        :raises ValueError: naming it.
        """
        monitor = self.monitor or run.monitor
        if run.measured[monitor].better is None:
            raise ValueError(
                f"early_stopping watches the {monitor} value, which here is the {run.measured[monitor]}: it does not "
                "say how good the program is. Give validation data with a validation_objective that does, or leave "
                "early_stopping out"
            )

    def _stop(self, run: Run) -> None:
        monitor = self.monitor or run.monitor
        run.stop(
            f"no better {monitor} {run.measured[monitor].name} in {self.patience} epochs after epoch {self.best_epoch}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
        with torch.no_grad():
            self.weights = {k: v.clone() for k, v in state["weights"].items()}


class FunctionCallback(Callback):
    """A plain function as ``on_epoch_end``."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def on_epoch_end(self, run: Run) -> None:
        self.fn(run)


def keeps_state(callback: Any) -> bool:
    """Whether a callback has a state of its own, which a checkpoint must hold."""
    own = getattr(type(callback), "state_dict", None)
    return own is not None and own is not Callback.state_dict


def watches_steps(callback: Any) -> bool:
    """Whether a callback is called after each step."""
    own = getattr(type(callback), "on_step_end", None)
    return own is not None and own is not Callback.on_step_end


def as_callback(obj: Any) -> Any:
    """A callback object; a plain function is made into one.

    :raises TypeError: for an object that is neither.
    """
    if any(callable(getattr(obj, name, None)) for name in EVENTS):
        return obj
    if callable(obj):
        return FunctionCallback(obj)
    raise TypeError(
        f"callbacks must hold functions of the run or objects with on_epoch_end(run), got {type(obj).__name__}"
    )
