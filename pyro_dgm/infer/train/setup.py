"""What :func:`pyro_dgm.fit` does before its first step: check arguments and data, find parameters, make optimisers."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_dgm.infer.objectives import Objective
from pyro_dgm.infer.objectives.phase import Phase, main_phase
from pyro_dgm.infer.train.batches import Batches, TensorBatches
from pyro_dgm.infer.train.callbacks import EarlyStopping
from pyro_dgm.infer.train.checkpoints.checkpoint import CheckpointFolder
from pyro_dgm.infer.train.checkpoints.whole_checkpoint import Saved, folder_of, newest, open_checkpoint
from pyro_dgm.infer.train.distributed import Group
from pyro_dgm.infer.train.loggers import CSVLogger, Logger, as_loggers
from pyro_dgm.infer.train.optimizers import Optimizers, check_plateau, split_by_role
from pyro_dgm.infer.train.run import Run
from pyro_dgm.ops.arguments import check_count, check_device, check_seed
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import Batch, split_batch
from pyro_dgm.programs.batch import check_batch, check_dtypes
from pyro_dgm.programs.module_state import buffers_kept
from pyro_dgm.programs.parameters import ParameterRecorder, ProgramState
from pyro_dgm.programs.tensors import named_tensors

Optimizer = torch.optim.Optimizer
#: data looked at whole by a program's ``check_batch`` have at most this many elements
CHECK_ELEMENTS = 2**28


def check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        check_count(name, value, optional=name in ("epochs", "max_steps", "num_data", "check_every"))


def open_folder(
    resume: bool | str | Path | None, checkpoint_dir: str | Path | None, group: Group, stack: ExitStack
) -> tuple[CheckpointFolder | None, Path | None, Saved | None]:
    """The folder to write checkpoints to, locked until the stack is closed, and the checkpoint to start from.

    :raises ValueError: if the folder holds an earlier run and ``resume`` is not given, or none that is whole.
    :raises FolderInUseError: if another run writes to it.
    """
    if resume is True and checkpoint_dir is None:
        raise ValueError("resume=True needs the checkpoint_dir to resume from (or give its path as resume=)")
    saved: Saved | None = None

    def find() -> tuple[Path | None, Path | None]:
        nonlocal saved
        target = checkpoint_dir
        if target is None and isinstance(resume, (str, Path)):
            target = folder_of(resume)
        if target is None:
            return None, None
        folder = CheckpointFolder(target)
        stack.enter_context(folder.lock())
        source = None
        if isinstance(resume, (str, Path)):
            source, saved = open_checkpoint(resume)
        elif resume and (found := newest(folder.path)):
            source, saved = found
        elif not resume and (traces := folder.traces()):
            raise ValueError(
                f"checkpoint_dir {target} holds an earlier run ({', '.join(traces[:4])}): resume=True goes on with it, "
                "another folder starts a new one"
            )
        return folder.path, source

    target, source = group.first(find)
    if source is not None and saved is None:
        saved = open_checkpoint(source)[1]
    return None if target is None else CheckpointFolder(target), source, saved


def choose_base_seed(seed: int | None, saved: Saved | None) -> int:
    check_seed(seed)
    if saved is not None:
        stored = saved[2]["seed"]
        if seed is not None and seed != stored:
            raise ValueError(f"seed is {seed}, the checkpoint's run has {stored}: leave it out, or give the same")
        return int(saved[1]["base_seed"])
    return int(torch.randint(2**62, ()).item()) if seed is None else seed


def choose_device(device: str | torch.device, roots: dict[str, nn.Module], data: Any) -> torch.device:
    if device != "auto":
        return check_device(device)
    for root in roots.values():
        for p in root.parameters():
            if p.device.type != "cpu":
                return p.device
    if any(True for root in roots.values() for _ in root.parameters()):
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    # Plain functions make their own tensors, which cannot be moved from here: stay where the data are.
    return next((t.device for _, t in named_tensors(data)), torch.device("cpu"))


def check_data(
    program: Any, batches: Batches, held_out: Batches | None, transforms: dict[str, Any], state: ProgramState
) -> Batch:
    """Check data before training, against the program's own ``check_batch`` too; gives back a first batch."""
    dtypes = {t.dtype for t in state.trainable().values() if t.is_floating_point()}
    for argument, source in (("validation", held_out), ("data", batches)):
        if source is None:
            continue
        transform = transforms[argument]
        whole = source.first() if transform is None else transform(source.first())
        check_dtypes(list(named_tensors(whole, argument)), dtypes)
        first = source.batch(whole)
        if isinstance(source, TensorBatches) and transform is None:
            if sum(t.numel() for _, t in named_tensors(source.data)) <= CHECK_ELEMENTS:
                whole = source.data
        check_batch(program, *split_batch(whole), argument)
    return first


def first_evaluation(pair: tuple[Any, Any], objective: Objective, batch: Batch, state: ProgramState) -> None:
    """Evaluate an objective once, which builds what is lazy, and note parameters that live on no module.

    :param pair: model and guide.
    """
    module = objective(*pair)
    with buffers_kept(state.buffers()), ParameterRecorder() as recorder:
        objective.first_evaluation(module, batch.args, batch.kwargs)
    state.add_objective(module)
    state.record(recorder.found)
    for tensor in state.trainable().values():
        tensor.grad = None


def initial_names(state: ProgramState, saved: Any) -> dict[str, Tensor]:
    """Leaves for the optimiser, in its order."""
    leaves = state.trainable()
    if not leaves:
        raise ValueError(
            "the program has no parameters to train: no module with parameters that require gradients, and no "
            "pyro.param statement on the first batch"
        )
    order = [] if saved is None else saved[1].get("initial", [])
    if not order or any(name not in leaves for name in order):
        return leaves  # of a new run; what is another program's will be refused
    return {name: leaves[name] for name in order}


def make_config(
    run: Run, batches: Batches, epochs: int, accumulate: int, precision: str | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """What was asked for, as JSON can hold it."""
    from pyro_dgm import __version__

    program = run.program
    config = {
        "program": type(program).__name__,
        "program_config": program.config() if callable(getattr(program, "config", None)) else None,
        "objective": type(run.objective).__name__,
        "optimizer": optimizer_names(run.optimizer),
        "accumulate": accumulate,
        "precision": precision,
        "epochs": epochs,
        "batch_size": getattr(batches, "batch_size", None),
        "data_length": batches.length,
        "seed": run.seed,
        "device": str(run.device),
        "settings": settings,
        "versions": {"pyro_dgm": __version__, "pyro": pyro.__version__, "torch": torch.__version__},
    }
    return json.loads(json.dumps(config, default=str))


def optimizer_names(optimizer: Any) -> str | dict[str, str]:
    if isinstance(optimizer, Optimizers):
        return {name: type(one).__name__ for name, one in optimizer.optimizers.items()}
    return type(optimizer).__name__


def check_loggers(loggers: Any) -> list[Logger]:
    """The loggers that an argument holds, each able to log.

    :raises ImportError: if what one needs is not installed.
    """
    made = as_loggers(loggers)
    for logger in made:
        if hasattr(logger, "check"):
            logger.check()
    return made


def make_loggers(made: list[Logger], folder: CheckpointFolder | None, run: Run, resumed: bool) -> list[Logger]:
    """The loggers of rank 0: those asked for, and a table beside the checkpoints."""
    if run.rank > 0:
        return []
    for logger in made:
        if resumed and hasattr(logger, "resume"):
            logger.resume(run.steps)
    if folder is None:
        return made
    table = metrics_table(folder)
    if not resumed and table.path.exists():  # of a run whose checkpoints are gone
        kept = next(path for i in itertools.count(1) if not (path := table.path.with_name(f"metrics-{i}.csv")).exists())
        table.path.rename(kept)
        warnings.warn(f"{table.path} is of an earlier run without a checkpoint: it is now {kept.name}", stacklevel=3)
    table.resume(run.steps)  # the folder is this run's: rows past its checkpoint are of a process that was killed
    return [*made, table]


def metrics_table(folder: CheckpointFolder) -> CSVLogger:
    """The table beside the checkpoints."""
    return CSVLogger(folder.path / "metrics.csv")


def find_roles(
    program: Any, leaves: dict[str, Tensor], batch: Batch, state: ProgramState, device: torch.device
) -> dict[str, str]:
    """Whose each parameter is, looked up on a batch; random numbers and running statistics stay as they are."""
    with forked_rng(device), buffers_kept(state.buffers()):
        return split_by_role(program, leaves, batch.args, batch.kwargs)


def check_divisible(
    program: Any, objective: Any, batch: Batch, state: ProgramState, num_data: int | None, what: str
) -> None:
    """Refuse to add up parts of a batch whose loss is no sum over data.

    A latent outside the plate of the data has a term in the loss of each part, which would count once for each.
    """
    if num_data is not None or batch.size == 1:
        return
    with buffers_kept(state.buffers()):
        is_sum = objective.is_sum(program.model, program.guide, batch.args, batch.kwargs)
    if not is_sum:
        raise ValueError(
            f"{what} divides a batch, but the program's bound is one number for the whole batch (it has a latent "
            "outside the plate of the data, or no plate): where there is no plate, put the data in one; else let it "
            "scale the batch to the size of the data set, pyro.plate(..., size, subsample=...), and give that size as "
            "num_data"
        )


def name_metrics(run: Run, phases: Sequence[Phase], validation_objective: Any, validated: bool) -> None:
    """Say on the run what its numbers are, and which of them tells how good an epoch is."""
    chief = main_phase(phases)
    run.measured = {phase.role: phase.measured for phase in phases if phase is not chief}
    run.measured["train"] = main = chief.measured
    run.measured["validation"] = main if validation_objective is None else validation_objective.metric
    run.monitor = "validation" if validated else "train"


def check_directions(run: Run, watchers: list[Any]) -> None:
    """Refuse to wait for a better value of a metric of which neither way is better."""
    check_plateau(run.scheduler, run.measured[run.monitor])
    for watcher in watchers:
        if isinstance(watcher, EarlyStopping):
            watcher.check(run)
