"""What a fit says of itself: the line above the bar, and how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pyro_dgm.infer.train.compilation import DEPTHS, Compilation
from pyro_dgm.infer.train.optimizers import Optimizers
from pyro_dgm.infer.train.precision import PRECISIONS
from pyro_dgm.infer.train.run import Run

__all__ = ["header", "interrupted_message", "no_best_message"]


def header(
    run: Run,
    device: torch.device,
    asked: Any,
    source: Path | None,
    ranks: int,
    compilation: Compilation,
    precision: str | None,
) -> str:
    """What is trained, how, and where."""
    count = sum(t.numel() for t in run.state.trainable().values())
    parts = [
        f"{type(run.program).__name__}, {count:,} parameters",
        f"objective {type(run.objective).__name__}",
        f"optimizer {run.optimizer if isinstance(run.optimizer, Optimizers) else type(run.optimizer).__name__}",
        f"device {device}{' (auto)' if asked == 'auto' else ''}",
    ]
    if compilation.active:
        parts.append(DEPTHS[compilation.depth])
    if precision is not None:
        parts.append(PRECISIONS[precision])
    elif device.type == "cuda":
        # Torch's switch decides, and makes a difference in the third digit that is worth seeing.
        exact = torch.get_float32_matmul_precision() == "highest"
        parts.append(PRECISIONS["32" if exact else "tf32"])
    if ranks > 1:
        parts.append(f"{ranks} processes")
    if source is not None:
        parts.append(f"resumed from {source} after epoch {run.epochs}")
    return "fit: " + ", ".join(parts)


def no_best_message(run: Run) -> str | None:
    """Where no epoch is better than another, why."""
    metric = run.measured[run.monitor]
    if metric.better is not None:
        return None
    return (
        f"no best epoch is kept: the {run.monitor} value is the {metric}; validation data with a validation_objective "
        "that has a better direction would say"
    )


def interrupted_message(run: Run, steps_in_epoch: int) -> str:
    """How a run that Ctrl-C stopped is gone on with."""
    if run.checkpoint is None:
        return (
            f"interrupted after {run.epochs} epochs; no checkpoint_dir was given, so only the program has the weights"
        )
    return (
        f"interrupted after {run.epochs} epochs and {steps_in_epoch} steps; "
        f"fit(..., resume={str(run.checkpoint.parent)!r}) goes on from there"
    )
