"""What a checkpoint keeps of a run beside its weights and history, so that training goes on on the same path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_dgm.infer.train.callbacks import keeps_state
from pyro_dgm.infer.train.settings import Totals
from pyro_dgm.ops.random_state import RandomState, forked_rng, seed_everything

if TYPE_CHECKING:
    from pyro_dgm.infer.train.loop import Trainer

__all__ = ["check_state", "load_state", "state_of"]

#: what a training state cannot do without
_TRAINING = (
    "optimizer", "scheduler", "initial", "late", "callbacks", "objective", "extras", "rng", "epoch_start", "totals",
    "base_seed", "best_saved",
)  # fmt: skip


def state_of(trainer: Trainer) -> dict[str, Any]:
    """All that going on needs beside weights and history, for ``torch.load(weights_only=True)``."""
    run, now = trainer.run, RandomState.capture(trainer.run.device)
    start, order = trainer.epoch_start or (now, trainer.batches.state_dict())
    return {
        "optimizer": run.optimizer.state_dict(),
        "scheduler": None if run.scheduler is None else run.scheduler.state_dict(),
        "initial": trainer.initial,
        "late": trainer.stepper.main.late,
        "callbacks": [c.state_dict() if keeps_state(c) else {} for c in trainer.callbacks],
        "objective": trainer.stepper.main.objective.state_dict(),
        "phases": [update.objective.state_dict() for update in trainer.stepper.updates if not update.main],
        "extras": run.state.extras(),
        "rng": now.state_dict(),
        "epoch_start": [start.state_dict(), order],
        "ranks": trainer.group.gather([now.state_dict(), start.state_dict()]) if trainer.group.size > 1 else [],
        "totals": None if trainer.epoch_start is None else vars(trainer.stepper.totals),
        "base_seed": trainer.settings.base_seed,
        "best_saved": trainer.best_saved,
    }


def check_state(trainer: Trainer, training: dict[str, Any]) -> None:
    """Refuse what :func:`load_state` could not take, before anything is loaded.

    :raises ValueError: if the optimiser has other parameters, or the callbacks that have a state are not as many.
    """
    missing = [key for key in _TRAINING if key not in training]
    if missing:
        raise ValueError(f"the checkpoint's training state has no entry {missing[0]!r}")
    saved = training["optimizer"]
    states = [saved] if "param_groups" in saved else list(saved.values())
    count = sum(len(group["params"]) for state in states for group in state["param_groups"])
    own = sum(len(group["params"]) for group in trainer.run.optimizer.param_groups)
    if count - len(training["late"]) != own:
        raise ValueError(f"the optimizer has {own} parameters, that of the checkpoint {count - len(training['late'])}")
    _states_of_callbacks(trainer, training["callbacks"])


def _states_of_callbacks(trainer: Trainer, saved: list[dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    """Each callback that keeps a state with the saved one: functions may come and go between two runs."""
    own = [callback for callback in trainer.callbacks if keeps_state(callback)]
    states = [state for state in saved if state]
    if len(states) == len(own):
        return list(zip(own, states, strict=True))
    if len(saved) != len(trainer.callbacks):
        raise ValueError(
            f"the checkpoint was made with {len(states)} callbacks that keep a state (early stopping is one), this "
            f"fit has {len(own)}"
        )
    return [(c, state) for c, state in zip(trainer.callbacks, saved, strict=True) if c in own]


def load_state(trainer: Trainer, training: dict[str, Any]) -> None:
    """Undo :func:`state_of`; weights and history are back already, and :func:`check_state` was."""
    run = trainer.run
    for name in training["late"]:
        trainer.stepper.main.add_late(name, run.state.named_tensors()[name])
    run.optimizer.load_state_dict(training["optimizer"])
    if run.scheduler is not None and training["scheduler"] is not None:
        run.scheduler.load_state_dict(training["scheduler"])
    for callback, state in _states_of_callbacks(trainer, training["callbacks"]):
        callback.load_state_dict(state)
    trainer.stepper.main.objective.load_state_dict(training["objective"])
    others = [update for update in trainer.stepper.updates if not update.main]
    for update, state in zip(others, training.get("phases", []), strict=True):
        update.objective.load_state_dict(state)
    trainer.best_saved = training["best_saved"]
    if run.averaging is not None:
        run.averaging.follow(run.state.trainable())
        run.averaging.load_state_dict(training["averaging"])
    now, start = _random_states(trainer, training)
    order = training["epoch_start"][1]
    trainer.batches.load_state_dict(order)
    if training["totals"] is None:
        now.restore(run.device)
        return
    totals = dict(training["totals"])
    totals["phases"] = {role: tuple(sums) for role, sums in totals.get("phases", {}).items()}
    totals.setdefault("updates", totals["steps"])  # of a version without phases
    trainer.stepper.totals = Totals(**totals)
    trainer.epoch_start = (start, order)
    start.restore(run.device)  # the epoch's order is drawn again, then `middle` is restored
    trainer.middle = now


def _random_states(trainer: Trainer, training: dict[str, Any]) -> list[RandomState]:
    """This rank's, now and at the start of the epoch; one that the saved run did not have begins a new stream."""
    ranks = training.get("ranks") or [[training["rng"], training["epoch_start"][0]]]
    if trainer.group.rank < len(ranks):
        return [RandomState.from_state_dict(state) for state in ranks[trainer.group.rank]]
    with forked_rng(trainer.run.device):
        seed_everything(trainer.group.seed(trainer.settings.base_seed) + trainer.run.steps, trainer.run.device)
        return [RandomState.capture(trainer.run.device)] * 2
