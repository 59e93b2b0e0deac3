"""Whether a run may go on from a checkpoint: everything that decides how training goes on must be as it was.

What may differ: epochs, device and number of processes, compilation, progress bar, loggers, functions as callbacks and
settings of those that keep a state, ``checkpoint_every``, ``check_every``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_dgm.infer.train.batches import Batches
from pyro_dgm.infer.train.callbacks import keeps_state
from pyro_dgm.infer.train.checkpoints.fingerprint import (
    describe,
    describe_data,
    describe_modules,
    describe_optimizer,
    describe_scheduler,
    differences,
)  # fmt: skip
from pyro_dgm.infer.train.run import Run

__all__ = ["check_same", "describe_settings", "upgraded"]

#: entries of the configuration itself that must agree, with what checkpoints had that knew no choice
COMPARED: dict[str, Any] = {
    "program": None, "program_config": None, "objective": None, "optimizer": None, "accumulate": 1, "precision": None,
    "batch_size": None, "data_length": None,
}  # fmt: skip


def describe_settings(
    run: Run, batches: Batches, held_out: Batches | None, watchers: list[Any], asked: Mapping[str, Any], content: bool
) -> dict[str, Any]:
    """What a run was asked for beyond the names in its configuration, for a comparison when it is resumed.

    :param asked: arguments that are compared as they are.
    :param content: take checksums of the data.
    """
    return {
        "modules": describe_modules(run.state.roots),
        "optimizer": None if run.optimizer is None else describe_optimizer(run.optimizer),
        "lr_scheduler": describe_scheduler(run.scheduler),
        "data": describe_data(batches, content),
        "validation": describe_data(held_out, content),
        "callbacks": [type(w).__name__ for w in watchers if keeps_state(w)],
        **{name: describe(value) for name, value in asked.items()},
    }


def check_same(
    config: dict[str, Any], saved: dict[str, Any], weights: Mapping[str, Tensor], run: Run, source: Path
) -> None:
    """Refuse a fit that is not the saved run's, before anything is loaded.

    :raises ValueError: naming each difference.
    """
    found = [
        line for key, default in COMPARED.items() for line in differences(saved.get(key, default), config[key], key)
    ]
    old = saved.get("settings")
    if old is None:
        warnings.warn(
            f"{source} is of an earlier version and does not hold {', '.join(config['settings'])}: these are not "
            "compared with those of the saved run",
            stacklevel=4,
        )
    else:
        new = config["settings"]
        left = [key for key in new if key not in old]
        if left:
            warnings.warn(f"{source} does not hold {', '.join(left)}: these are not compared", stacklevel=4)
        found += differences({k: v for k, v in old.items() if k in new}, {k: new[k] for k in new if k in old})
    own = run.state.named_tensors()
    found += [
        f"{name}: saved {value.dtype}, given {own[name].dtype}"
        for name, value in weights.items()
        if name in own and own[name].dtype != value.dtype
    ]
    if found:
        lines = "".join(f"\n  {line}" for line in found[:12])
        more = f"\n  and {len(found) - 12} more" if len(found) > 12 else ""
        raise ValueError(
            f"resume: this fit is not the run saved in {source}, which would not go on as it was:{lines}{more}\n"
            "Give what was saved; or start a new run, in another folder, from its weights (load_weights)"
        )


def upgraded(saved: dict[str, Any], run: Run) -> dict[str, Any]:
    """A saved configuration as this version writes it: format 1 had minus the loss where lower is better."""
    if saved["format"] > 1:
        return saved
    history, best = dict(saved["history"]), saved["best"]
    for key, metric in run.measured.items():
        if metric.better == "lower":
            history[key] = [-value for value in history[key]]
    metric = run.measured[run.monitor]
    if best is not None and metric.better == "lower":
        best = {**best, "bound": -best["bound"]}
    return {**saved, "history": history, "best": None if metric.better is None else best}
