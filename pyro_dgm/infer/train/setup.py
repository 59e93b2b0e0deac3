"""What :func:`pyro_dgm.fit` does before its first step: check arguments and data, find parameters, make optimisers."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_dgm.infer.objectives import Objective
from pyro_dgm.infer.objectives.metric import metric_of
from pyro_dgm.infer.objectives.phase import Phase
from pyro_dgm.infer.train.batches import Batches, TensorBatches
from pyro_dgm.infer.train.callbacks import EarlyStopping
from pyro_dgm.infer.train.checkpoints.checkpoint import CheckpointFolder
from pyro_dgm.infer.train.checkpoints.whole_checkpoint import Saved, folder_of, newest, open_checkpoint
from pyro_dgm.infer.train.compilation import DEPTHS, Compilation, choose_depth
from pyro_dgm.infer.train.distributed import Group
from pyro_dgm.infer.train.loggers import CSVLogger, Logger, as_loggers
from pyro_dgm.infer.train.loop import Trainer
from pyro_dgm.infer.train.optimizers import Optimizers, check_plateau, split_by_role
from pyro_dgm.infer.train.paired import PairedBatches
from pyro_dgm.infer.train.phases import optimizer_of
from pyro_dgm.infer.train.precision import PRECISIONS
from pyro_dgm.infer.train.run import Run
from pyro_dgm.infer.train.settings import Settings
from pyro_dgm.infer.train.update import Update, gradients_by_objective
from pyro_dgm.ops.arguments import check_count, check_device, check_seed
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import Batch, split_batch
from pyro_dgm.programs.batch import check_batch, check_dtypes
from pyro_dgm.programs.parameters import ParameterRecorder, ProgramState
from pyro_dgm.programs.tensors import as_batch, named_tensors

Optimizer = torch.optim.Optimizer
#: data looked at whole by a program's ``check_batch`` have at most this many elements
CHECK_ELEMENTS = 2**28


def check_objective(argument: str, objective: Any) -> None:
    """Refuse what cannot be called with a model and a guide."""
    if isinstance(objective, type):
        raise TypeError(f"{argument} must be an instance, {objective.__name__}(), got the class itself")
    name = type(objective).__name__
    if name.startswith("Jit") and isinstance(objective, pyro.infer.ELBO):
        raise TypeError(
            f"{argument} must not be one of Pyro's {name}: torch.jit is deprecated, and it takes parameters from the "
            f"global param store alone. Take {name.removeprefix('Jit')}(), which fit compiles by itself (compile=)"
        )
    if not callable(objective):
        raise TypeError(f"{argument} must be an ELBO or a callable of (model, guide), got {type(objective).__name__}")


def check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        check_count(name, value, optional=name in ("epochs", "max_steps", "num_data", "check_every"))


def open_folder(
    resume: bool | str | Path | None, checkpoint_dir: str | Path | None, group: Group, stack: ExitStack
) -> tuple[CheckpointFolder | None, Path | None, Saved | None]:
    """The folder to write checkpoints to, held until the stack is closed, and the checkpoint to start from.

    :raises ValueError: if the folder holds an earlier run and ``resume`` is not given, or none that is whole.
    :raises FolderInUseError: if another run writes to it.
    """
    if resume is True and checkpoint_dir is None:
        raise ValueError("resume=True needs the checkpoint_dir to resume from (or give its path as resume=)")
    saved: Saved | None = None

    def look() -> tuple[Path | None, Path | None]:
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

    target, source = group.first(look)
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


def make_updates(
    phases: Sequence[Phase],
    modules: Sequence[Any],
    run: Run,
    settings: Settings,
    batches: Batches,
    first: Batch,
    saved: Any,
    compile: bool | str,
    watched: bool,
) -> list[Update]:
    """What a step does: the updates of each phase; the last one is the main phase."""
    alone = len(phases) == 1
    return [
        Update(
            run, phase.objective, module, run.optimizer if alone else optimizer_of(phase, run.optimizer),
            make_compilation(compile, run, phase.objective, settings, batches, first, saved, alone, watched),
            settings, phase.role, phase.steps, main=phase is phases[-1], alone=alone,
        )
        for phase, module in zip(phases, modules, strict=True)
    ]  # fmt: skip


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
        first = as_batch(whole, source.size(whole))
        if isinstance(source, TensorBatches) and transform is None:
            if sum(t.numel() for _, t in named_tensors(source.data)) <= CHECK_ELEMENTS:
                whole = source.data
        check_batch(program, *split_batch(whole), argument)
    return first


def first_evaluation(program: Any, objective: Any, batch: Batch, state: ProgramState) -> Any:
    """Evaluate the objective once, which builds what is lazy, and note parameters that live on no module.

    :returns: what ``objective(model, guide)`` made; ``None`` for an objective that computes gradients itself.
    """
    steps = objective.state_dict() if isinstance(objective, Objective) else None
    module: Any = None if gradients_by_objective(objective) else objective(program.model, program.guide)
    with unchanged(state.buffers()), ParameterRecorder() as recorder:
        if module is None:
            objective.loss_and_grads(program.model, program.guide, *batch.args, **batch.kwargs)
        else:
            module(*batch.args, **batch.kwargs)
    if steps is not None:  # the first evaluation is no training step
        objective.load_state_dict(steps)
    state.add_objective(module)
    state.record(recorder.found)
    for tensor in state.trainable().values():
        tensor.grad = None
    return module


@contextmanager
def unchanged(buffers: list[Tensor]) -> Iterator[None]:
    """Put buffers back at the end: running statistics have seen a batch that was no training step."""
    values = [b.detach().clone() for b in buffers]
    yield
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)


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
    with forked_rng(device), unchanged(state.buffers()):
        return split_by_role(program, leaves, batch.args, batch.kwargs)


def check_divisible(
    program: Any, objective: Any, batch: Batch, state: ProgramState, num_data: int | None, what: str
) -> None:
    """Refuse to add up parts of a batch whose loss is no sum over data.

    A latent outside the plate of the data has a term in the loss of each part, which would count once for each.
    """
    if not isinstance(objective, Objective) or num_data is not None or batch.size == 1:
        return
    with unchanged(state.buffers()):
        bound = objective.bound(program.model, program.guide, *batch.args, **batch.kwargs)
    if bound.numel() == 1:
        raise ValueError(
            f"{what} divides a batch, but the program's bound is one number for the whole batch (it has a latent "
            "outside the plate of the data, or no plate): where there is no plate, put the data in one; else let it "
            "scale the batch to the size of the data set, pyro.plate(..., size, subsample=...), and give that size as "
            "num_data"
        )


def make_compilation(
    asked: bool | str,
    run: Run,
    objective: Any,
    settings: Settings,
    batches: Batches,
    first: Batch,
    saved: Any,
    alone: bool,
    watched: bool,
) -> Compilation:
    """How far a phase is compiled; a resumed run goes on as it was.

    :param alone: whether it is the only phase.
    :param watched: whether a callback is called after each step.
    """
    parameters = list(run.state.trainable().values())
    steps = None if batches.num_batches is None else settings.epochs * (-(-batches.num_batches // settings.accumulate))
    depth = choose_depth(asked, objective, parameters, first.size, steps)
    if saved is not None and asked == "auto" and alone:
        depth = saved[2].get("compile", depth)
    alone = alone and settings.group.size == 1 and settings.accumulate == 1 and not isinstance(batches, PairedBatches)
    alone = alone and not isinstance(run.optimizer, Optimizers)
    if depth in ("step", "block") and not alone:
        depth = "objective"  # gradients are joined before the optimiser's step
    scheduled = isinstance(objective, Objective) and objective.scheduled
    each_step = settings.step_scheduler_each == "step" and run.scheduler is not None
    each_step = each_step or watched or (run.averaging is not None and run.averaging.each_step)
    simple = isinstance(batches, TensorBatches) and settings.transform is None
    if depth == "block" and (scheduled or each_step or settings.max_steps is not None or not simple):
        depth = "step"  # something happens between two steps
    return Compilation(
        depth, asked, objective, run.program, first.packed, settings.share, settings.clip_norm,
        settings.validation_objective,
    )  # fmt: skip


def header(
    run: Run,
    device: torch.device,
    asked: Any,
    source: Path | None,
    ranks: int,
    compilation: Compilation,
    precision: str | None,
) -> str:
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


def name_metrics(run: Run, phases: Sequence[Phase], validation_objective: Any, validated: bool) -> None:
    """Say on the run what its numbers are, and which of them tells how good an epoch is."""
    run.measured = {phase.role: phase.measured for phase in phases[:-1]}
    run.measured["train"] = main = phases[-1].measured
    run.measured["validation"] = main if validation_objective is None else metric_of(validation_objective)
    run.monitor = "validation" if validated else "train"


def check_directions(run: Run, watchers: list[Any]) -> None:
    """Refuse to wait for a better value of a metric of which neither way is better."""
    check_plateau(run.scheduler, run.measured[run.monitor])
    for watcher in watchers:
        if isinstance(watcher, EarlyStopping):
            watcher.check(run)


def no_best_message(run: Run) -> str | None:
    """Where no epoch is better than another, why."""
    metric = run.measured[run.monitor]
    if metric.better is not None:
        return None
    return (
        f"no best epoch is kept: the {run.monitor} value is the {metric}; validation data with a validation_objective "
        "that has a better direction would say"
    )


def interrupted_message(run: Run, trainer: Trainer) -> str:
    if run.checkpoint is None:
        return (
            f"interrupted after {run.epochs} epochs; no checkpoint_dir was given, so only the program has the weights"
        )
    return (
        f"interrupted after {run.epochs} epochs and {trainer.steps_in_epoch} steps; "
        f"fit(..., resume={str(run.checkpoint.parent)!r}) goes on from there"
    )
