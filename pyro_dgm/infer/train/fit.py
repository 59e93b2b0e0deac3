"""``fit``: train a program on data under an objective."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.adapter import as_objective
from pyro_dgm.infer.objectives.bounds.elbo import ELBO
from pyro_dgm.infer.train import messages, setup
from pyro_dgm.infer.train.averaging import WeightAverage
from pyro_dgm.infer.train.callbacks import EarlyStopping, as_callback, watches_steps
from pyro_dgm.infer.train.checkpoints.fingerprint import describe
from pyro_dgm.infer.train.checkpoints.resumption import check_same, describe_settings, upgraded
from pyro_dgm.infer.train.distributed import joined, own_device
from pyro_dgm.infer.train.interrupt import InterruptRequest
from pyro_dgm.infer.train.loggers import Logger
from pyro_dgm.infer.train.loop import Trainer
from pyro_dgm.infer.train.optimizers import make_scheduler
from pyro_dgm.infer.train.paired import batches_of
from pyro_dgm.infer.train.phases import make_optimizers, make_updates, phases_of
from pyro_dgm.infer.train.precision import check_precision, matmul_precision
from pyro_dgm.infer.train.progress import ProgressBar, SilentProgress
from pyro_dgm.infer.train.run import Run
from pyro_dgm.infer.train.settings import Settings
from pyro_dgm.infer.train.training_state import check_state, load_state
from pyro_dgm.ops.arguments import LARGEST_COUNT, check_number
from pyro_dgm.ops.random_state import forked_rng, seed_everything
from pyro_dgm.programs import as_program, is_plain
from pyro_dgm.programs.batch import refuse_inference_mode
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.parameters import ProgramState, local_store, module_roots

__all__ = ["fit"]

logger = logging.getLogger("pyro_dgm")

Optimizer = torch.optim.Optimizer
MakeOptimizer = Callable[[list[Tensor]], Optimizer]
MakeScheduler = Callable[[Optimizer], Any]


@one_at_a_time
def fit(
    program: Any,
    data: Any,
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    objective: Any = None,
    optimizer: Optimizer | MakeOptimizer | Mapping[str, MakeOptimizer | None] | None = None,
    batch_size: int | Sequence[int] | None = None,
    shuffle: bool = True,
    transform: Callable[[Any], Any] | None = None,
    validation: Any = None,
    validation_objective: Any = None,
    validation_transform: Callable[[Any], Any] | None = None,
    num_data: int | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    lr_scheduler: MakeScheduler | Mapping[str, MakeScheduler] | None = None,
    lr_scheduler_interval: str = "epoch",
    early_stopping: EarlyStopping | int | None = None,
    averaging: WeightAverage | None = None,
    callbacks: Sequence[Any] = (),
    loggers: Logger | Sequence[Logger] = (),
    seed: int | None = None,
    device: str | torch.device = "auto",
    compile: bool | str = "auto",
    precision: str | None = None,
    devices: int | None = None,
    progress: bool = True,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool | str | Path | None = None,
    check_every: int | None = None,
) -> Run:
    r"""Train a program in place by stochastic gradient ascent on a variational bound.

    Each step draws a batch :math:`B` and moves the parameters :math:`\theta` along the gradient of
    :math:`-\mathcal{L}_B(\theta) / |B|`: the objective's loss is a sum over the batch in nats (Pyro's convention) and
    is divided by the number of data in it, so that a learning rate means the same at any batch size.

    :param program: a family of :mod:`pyro_dgm.models`, ``pyro_dgm.program(model, guide)``, a pair of callables, or any
        object with ``model`` and ``guide``.  Modules' parameters are trained, and those of ``pyro.param`` and
        ``pyro.module`` statements, found by running the program on a first batch; that also builds a lazy guide.
    :param data: a tensor, a tuple of tensors (positional arguments of the program) or a mapping of them (keyword
        arguments), all of one length, the data first; or a ``Dataset`` or ``DataLoader``; or sources of unequal
        length, :class:`~pyro_dgm.infer.Paired`.  Data are constants: no gradient reaches them.
    :param epochs: passes over the data in all; a resumed run counts those it had.
    :param max_steps: optimiser steps in all, after which training stops, in the middle of an epoch too; ``epochs`` may
        then be left out.
    :param objective: an objective of :mod:`pyro_dgm.infer`, any ``pyro.infer.ELBO``, or any callable that makes of
        ``(model, guide)`` a callable whose value on a batch is the loss; ``None`` is :class:`~pyro_dgm.infer.ELBO`.
    :param optimizer: ``None`` for Adam at 1e-3; a callable from the list of parameters to a :mod:`torch.optim`
        optimiser, as ``functools.partial(torch.optim.Adam, lr=3e-4)``; an optimiser over (some of) the parameters; or
        a mapping of callables (or ``None``) with keys ``"model"``, ``"guide"``, ``"shared"`` (for parameters that both
        use) and ``"objective"`` (for networks that the objective trains), each over those parameters.
    :param batch_size: data a batch, by default 128; not with a ``DataLoader``.  The last batch may be smaller.  Several
        devices share it.  For :class:`~pyro_dgm.infer.Paired` data one number, or one for each source.
    :param shuffle: a new order each epoch; a batch of all the data keeps their order, and an ``IterableDataset`` its
        own.
    :param transform: called with each batch on its device, random numbers from torch's global generator:
        ``torch.bernoulli`` is dynamic binarisation.
    :param validation: held-out data, of any form that ``data`` takes.
    :param validation_objective: objective of the validation bound, by default ``objective``.
    :param validation_transform: ``transform`` for validation, by default the same.  Validation runs in evaluation mode
        with random numbers of its own, the same each epoch, so that it changes nothing in training.
    :param num_data: number of data that one batch's loss stands for; ``None`` is the number in the batch.  Give the
        size of the data set when the program scales a batch up to it (``pyro.plate(..., subsample_size=...)``).
    :param accumulate: batches a step: the gradient is that of the joined batch, in the memory of one.
    :param clip_norm: clip the norm of the gradient of the loss per datum to this; of each optimiser of a mapping.
    :param lr_scheduler: callable from the optimiser to a scheduler of :mod:`torch.optim.lr_scheduler`, or a mapping of
        them with keys of ``optimizer``.
        ``ReduceLROnPlateau`` is given the monitored value so that a better one counts as such in either of its modes.
    :param lr_scheduler_interval: step it after each ``"epoch"`` or each ``"step"``.
    :param early_stopping: epochs to wait for a better bound, or an :class:`~pyro_dgm.infer.EarlyStopping`.
    :param averaging: average the weights, :class:`~pyro_dgm.infer.EMA` or :class:`~pyro_dgm.infer.SWA`: validation,
        checkpoints' weights and the program after training have the average.
    :param callbacks: functions of the :class:`~pyro_dgm.infer.Run` called after each epoch, or
        :class:`~pyro_dgm.infer.Callback` objects.
    :param loggers: objects of :mod:`pyro_dgm.infer.train.loggers`, given the numbers of each epoch.
    :param seed: seeds torch, NumPy and Python for the run and the order of the data; the caller's random state is put
        back afterwards.  With ``None`` the run draws from the global generators as they are.
    :param device: ``"auto"`` is the accelerator the parameters are on already, else CUDA where there is one, else the
        CPU; or a device.  The program is moved there.
    :param devices: processes to train on, each with a device and a part of every batch; more than 1 needs the extra
        ``distributed``, and runs the present script in each process.  ``None`` joins the processes that ``torchrun``
        started, if it did; 1 never does.
    :param compile: run the program as a static graph of tensor operations (:class:`~pyro_dgm.infer.CapturedELBO`), same
        random numbers, same values up to rounding.  ``"auto"`` does so in runs that are long enough to win back the
        seconds of compiling, ``True`` at once, ``False`` never.  Programs of up to 50 000 parameters have the
        optimiser's update in the graph too.  Or name how far: ``"graph"`` (recorded, not compiled), ``"objective"``,
        ``"reduce-overhead"`` (the same, its kernels replayed as CUDA graphs on such a device), ``"step"``, ``"block"``
        (ten steps at once).  A program that cannot be recorded runs eagerly; a message gives the reason.
    :param precision: of float32 matrix products: ``"32"`` and ``"tf32"`` set torch's own switches for the run,
        ``"bf16"`` computes them from bfloat16 and all else in float32 (:func:`~pyro_dgm.infer.mixed_precision`), in
        validation too; ``None`` leaves torch as it is set.  TF32 and bfloat16 are for GPUs with tensor cores.
    :param progress: show a bar with the live bound.
    :param checkpoint_dir: folder for checkpoints (:mod:`~pyro_dgm.infer.train.checkpoints.checkpoint`): the newest and
        the best are kept, and ``metrics.csv`` has a row for each epoch.
    :param checkpoint_every: epochs between checkpoints; the last epoch always has one.
    :param resume: ``True`` goes on from the latest checkpoint in ``checkpoint_dir``, or starts if there is none; a path
        goes on from that checkpoint, or from the latest in that folder, which then is the ``checkpoint_dir`` unless
        another is given.  Give the same arguments: the run goes on exactly where it was, on CPU to the bit; what
        differs is named in an error before anything is loaded.  Where the latest checkpoint is damaged, the newest that
        is whole is taken, with a warning.
    :param check_every: steps between checks that loss and gradient are finite, each of which waits for the device;
        by default every step on CPU and every tenth on CUDA, where a bad step is then noticed late.
    :returns: the :class:`~pyro_dgm.infer.Run`.  Ctrl-C stops after the step under way, leaves a checkpoint that
        ``resume`` takes and sets ``run.interrupted``; a second Ctrl-C raises ``KeyboardInterrupt``.  SIGTERM leaves the
        same checkpoint, where there is a ``checkpoint_dir``, and then ends the process as it does by default.
    :raises NonFiniteLossError: (:class:`~pyro_dgm.infer.NonFiniteLossError`, a ``FloatingPointError``) when
        the loss or a gradient is not finite, naming the site it came from and the last good checkpoint.
    :raises ValueError: for arguments that do not fit, data whose dtype is not the parameters', or no parameters; for a
        resumed run that is another, a folder that another run writes to
        (:class:`~pyro_dgm.infer.train.checkpoints.checkpoint.FolderInUseError`) or whose files are damaged
        (:class:`~pyro_dgm.infer.train.checkpoints.checkpoint.DamagedFileError`).
    :raises OSError: when a checkpoint cannot be written; the last good one is left.
    :raises ImportError: before training, if what a logger needs is not installed.
    :raises TypeError: for objects of another kind than wanted.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=5, latent_dim=2)
        >>> run = pyro_dgm.fit(m, torch.randn(64, 5), epochs=2, batch_size=16, seed=0, progress=False)
        >>> run.epochs, len(run.history["train"])
        (2, 2)
    """
    program = as_program(program)
    refuse_inference_mode()
    if objective is None:
        objective = ELBO()
    trained = as_objective(objective)
    validated = None
    if validation_objective is not None:
        validated = as_objective(validation_objective, "validation_objective")
    setup.check_counts(
        epochs=epochs, max_steps=max_steps, checkpoint_every=checkpoint_every, num_data=num_data,
        check_every=check_every, accumulate=accumulate,
    )  # fmt: skip
    if epochs is None and max_steps is None:
        raise TypeError("fit needs epochs, max_steps, or both")
    if averaging is not None and not isinstance(averaging, WeightAverage):
        raise TypeError(f"averaging must be EMA(...), SWA(...) or None, got {averaging!r}")
    check_number("clip_norm", clip_norm, optional=True)
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, got {clip_norm!r}")
    if lr_scheduler_interval not in ("epoch", "step"):
        raise ValueError(f"lr_scheduler_interval must be 'epoch' or 'step', got {lr_scheduler_interval!r}")
    writers = setup.check_loggers(loggers)
    roots = module_roots(program)
    place = setup.choose_device(device, roots, data)
    with ExitStack() as stack:
        interrupt = InterruptRequest()
        stack.callback(interrupt.deliver)  # SIGTERM ends the process when all else is closed
        group = stack.enter_context(joined(devices, place.type))
        place = own_device(group, place, device)
        folder, source, saved = setup.open_folder(resume, checkpoint_dir, group, stack)
        base_seed = group.broadcast(setup.choose_base_seed(seed, saved))
        seed = seed if saved is None else saved[2]["seed"]
        batches = batches_of(data, batch_size, shuffle, base_seed, place, group=group)
        held_out = None
        if validation is not None:
            own = isinstance(validation, torch.utils.data.DataLoader)
            size = None if own else getattr(batches, "batch_size", batch_size)
            held_out = batches_of(validation, size, False, base_seed, place, "validation", group)
        watchers = [as_callback(c) for c in callbacks]
        if early_stopping is not None:
            stopping = EarlyStopping(early_stopping) if isinstance(early_stopping, int) else early_stopping
            watchers.append(as_callback(stopping))
        for root in roots.values():
            root.to(place)
            if not root.training:
                root.train()
        check_every = check_every or (10 if place.type == "cuda" else 1)
        # As they are before training: some change with it.
        asked = {
            "objective": describe(objective), "validation_objective": describe(validation_objective),
            "shuffle": getattr(batches, "shuffle", shuffle), "clip_norm": clip_norm, "num_data": num_data,
            "transform": describe(transform), "validation_transform": describe(validation_transform),
            "lr_scheduler_interval": lr_scheduler_interval, "averaging": describe(averaging),
        }  # fmt: skip

        # Several processes draw noise of their own even where no seed was asked for.
        noise_seed = base_seed if seed is None and group.size > 1 else seed
        noise_seed = None if noise_seed is None else group.seed(noise_seed)
        keep = forked_rng(place, noise_seed, enabled=noise_seed is not None or saved is not None)
        for context in (keep, local_store(roots), matmul_precision(precision)):
            stack.enter_context(context)
        state = ProgramState(program, objective)
        with forked_rng(place):
            seed_everything(base_seed + 1, place)
            transforms = {"data": transform, "validation": validation_transform or transform}
            first = setup.check_data(program, batches, held_out, transforms, state)
            pair = program.model, program.guide
            setup.first_evaluation(pair, trained, first, state)
            phases = phases_of(trained, program)
            for phase in phases:
                if phase.objective is not trained:
                    setup.first_evaluation(pair, phase.objective, first, state)
            if group.size > 1 or accumulate > 1:
                what = f"accumulate={accumulate}" if group.size == 1 else f"training on {group.size} devices"
                setup.check_divisible(program, trained, first, state, num_data, what)
        if saved is None:
            group.share([*state.named_tensors().values(), *state.buffers()])
        names = setup.initial_names(state, saved)
        check_precision(precision, names)
        made = make_optimizers(optimizer, phases, names, lambda: setup.find_roles(program, names, first, state, place))
        run = Run(program, objective, seed=seed, device=place, optimizer=made, state=state, rank=group.rank)
        run.averaging = None if averaging is None else averaging.begin()
        setup.name_metrics(run, phases, validated, held_out is not None)
        options = [{k: v for k, v in g.items() if k != "params"} for g in made.param_groups]
        run.scheduler = make_scheduler(lr_scheduler, made, lr_scheduler_interval)
        setup.check_directions(run, watchers)
        compared = describe_settings(run, batches, held_out, watchers, asked, content=folder is not None)
        # A function can come upon a pyro.param statement at any step; what belongs to a module is known beforehand.
        plain = any(is_plain(fn) for fn in (program.model, program.guide))
        settings = Settings(
            LARGEST_COUNT if epochs is None else epochs, base_seed, max_steps, clip_norm, num_data, transform,
            validation_transform, validated, lr_scheduler_interval, checkpoint_every, check_every,
            watch_parameters=plain or bool(state.store), accumulate=accumulate,
            batches_a_step=accumulate * max(phase.steps for phase in phases), group=group, precision=precision,
        )  # fmt: skip
        steps = settings.steps_per_epoch(batches.num_batches)
        if epochs is None and max_steps is not None and steps is not None:
            settings.epochs = math.ceil(max_steps / steps)
        epochs = settings.epochs
        config = setup.make_config(run, batches, epochs, accumulate, precision, compared)
        run.config = config
        measured = run.measured["train"], run.measured["validation"]
        bar = ProgressBar(epochs, steps, *measured) if progress and group.rank == 0 else SilentProgress()
        watched = any(map(watches_steps, watchers))
        updates = make_updates(phases, pair, run, settings, batches, first, saved, compile, watched)
        trainer = Trainer(
            run, updates, settings, batches, held_out, list(names), watchers, folder, bar, interrupt=interrupt
        )
        compilation = trainer.compilation
        config["compile"] = compilation.depth
        if saved is not None and source is not None:
            try:  # all is looked at before anything of the caller's is changed
                check_same(config, saved[2], saved[0], run, source)
                state.check(saved[0])
                check_state(trainer, saved[1])
                if folder is not None:
                    setup.metrics_table(folder).check()
            except Exception:
                for group_of, before in zip(made.param_groups, options, strict=True):
                    group_of.update(before)  # a scheduler has begun to set them
                raise
            state.load(saved[0], saved[1]["extras"])
            group.share([*state.named_tensors().values(), *state.buffers()])
            if folder is not None and group.rank == 0:
                folder.go_on(source, saved[2])
            run.load_record(upgraded(saved[2], run))
            run.checkpoint, run.best_checkpoint = source, None if folder is None else folder.pointer("best")
            run.stop_reason = saved[2]["stop_reason"] if saved[2]["epochs"] == epochs else ""
            load_state(trainer, saved[1])
        trainer.loggers = setup.make_loggers(writers, folder, run, resumed=saved is not None)
        try:
            with bar:
                if group.rank == 0:
                    header = messages.header(run, place, device, source, group.size, compilation, precision)
                    for line in filter(None, (header, messages.no_best_message(run) if folder is not None else None)):
                        logger.info(line)
                        bar.header(line)
                trainer.train()
                if run.interrupted and group.rank == 0:
                    message = messages.interrupted_message(run, trainer.steps_in_epoch)
                    bar.header(message) if progress else logger.warning(message)
        finally:
            for open_logger in trainer.loggers:
                open_logger.close()
    return run
