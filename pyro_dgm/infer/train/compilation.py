"""How far :func:`pyro_dgm.fit` compiles a run: not at all, the objective, whole steps, or blocks of steps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.capture.cost import cost_on
from pyro_dgm.capture.snapshot import Snapshot, snapshot
from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer.objectives import Objective
from pyro_dgm.infer.objectives.captured import CapturedELBO
from pyro_dgm.infer.train.batches import TensorBatches
from pyro_dgm.infer.train.captured_step import CapturedSteps, quick_key
from pyro_dgm.programs import split_batch
from pyro_dgm.programs.tensors import take_rows

__all__ = ["DEPTHS", "Compilation", "choose_depth"]

logger = logging.getLogger("pyro_dgm")

#: what ``fit(compile=...)`` takes beside True, False and "auto", and what the run's header says of each
DEPTHS = {
    "eager": "not compiled",
    "graph": "recorded as a graph",
    "objective": "objective compiled",
    "reduce-overhead": "objective compiled, launched as CUDA graphs",
    "step": "whole steps compiled",
    "block": "blocks of steps compiled",
}

#: whole steps for programs of up to this many parameters: a larger one would pay for the copies that keep bad steps out
WHOLE_STEP_PARAMETERS = 50_000
#: steps in a block; each is compiled for itself, so that a block takes as many times as long to compile
BLOCK = 10
#: changes of the program after which new graphs are compiled too, not only recorded
COMPILED_CHANGES = 2
#: most epochs without a change that are waited for before new graphs are made
LONGEST_WAIT = 10
#: shapes of batches beside the common one for which a whole step is recorded
OTHER_SHAPES = 3


def choose_depth(
    asked: bool | str, objective: Any, parameters: Sequence[Tensor], batch_size: int, steps: int | None
) -> str:
    """The depth for a run of ``steps`` optimiser steps.

    ``"auto"`` compiles where the steps to come win back what compiling costs.  It goes by counts alone, never by a
    clock: the same run is compiled the same way each time, for compiled sums differ in their last bits.

    :param steps: of the whole run; ``None`` where the data cannot say.
    :raises TypeError: for something that is neither a bool nor a string.
    :raises ValueError: for a word that is not known, or an objective that cannot be captured.
    """
    if not isinstance(asked, (bool, str)):
        raise TypeError(f"compile must be a bool or a string, got {type(asked).__name__}")
    if isinstance(asked, str) and asked != "auto" and asked not in DEPTHS:
        raise ValueError(f"compile must be True, False, 'auto' or one of {', '.join(DEPTHS)}, got {asked!r}")
    if asked is False or asked == "eager":
        return "eager"
    if not objective.capturable:
        if asked == "auto":
            return "eager"
        raise ValueError(
            f"compile={asked!r} needs an objective of pyro_dgm.infer that is not captured already, got "
            f"{_name(objective)}: leave compile out, or give another objective"
        )
    if isinstance(asked, str) and asked != "auto":
        return asked
    count = sum(p.numel() for p in parameters)
    whole = "step" if count <= WHOLE_STEP_PARAMETERS else "objective"
    if asked is True:
        return whole
    if steps is None:
        return "eager"
    cost = cost_on(parameters[0].device if parameters else torch.device("cpu"))
    arithmetic = cost.arithmetic * count * batch_size * objective.num_particles
    if whole == "step" and steps * cost.saved_block > 1.25 * cost.compiling_block:
        return "block"
    if steps * (cost.saved_compiled + 0.25 * arithmetic) > 1.25 * cost.compiling:
        return whole
    return "graph" if steps * cost.saved_recorded > 1.25 * cost.recording else "eager"


def _name(objective: Objective) -> str:
    return type(objective.original).__name__


class Compilation:
    """The graphs of a run.  Each method gives ``None`` where there is no graph, and the step is taken eagerly.

    :param depth: one of :data:`DEPTHS`.
    :param asked: what the user said: where compiling was asked for and cannot be, a warning says so.
    :param common: a batch of the shape that most have; it is compiled for, other shapes are recorded only.
    :param share: the loss's weight in the gradient for a batch of that many data.
    """

    def __init__(
        self,
        depth: str = "eager",
        asked: bool | str = False,
        objective: Any = None,
        program: Any = None,
        common: Any = None,
        share: Callable[[int], float] = float,
        clip_norm: float | None = None,
        validation_objective: Any = None,
    ) -> None:
        self.depth, self.asked = depth, asked
        self.objective, self.program = objective, program
        self.share, self.clip_norm = share, clip_norm
        self.common = quick_key(common)
        self.validation_objective = validation_objective or objective
        self.steps: CapturedSteps | None = None
        self.captured: CapturedELBO | None = None
        self._validation: CapturedELBO | None = None
        self._before: Snapshot | None = None
        self._verify = False
        #: times that the program was not what its graphs were made of, and epochs to wait before new ones are made
        self.changes, self.wait = 0, 0
        self._hook = ""
        if depth != "eager":
            self._begin()

    def _begin(self) -> None:
        """Make what records graphs; those that it had are dropped."""
        backend = "inductor" if self.depth in ("objective", "reduce-overhead") and self._compiles else "aten"
        self.steps = None
        self.captured = self._capture(self.objective, backend, cuda_graphs=self.depth == "reduce-overhead")
        if self.validation_objective.capturable:
            self._validation = self._capture(self.validation_objective, "aten")

    def _capture(self, objective: Objective, backend: str, cuda_graphs: bool = False) -> CapturedELBO:
        # Only the first shape is compiled, at once: a count of calls would begin anew in a resumed run.
        captured = CapturedELBO(objective, backend=backend, cuda_graphs=cuda_graphs, compile_after=None, say=self._say)
        captured.checks_modules = False
        return captured

    @property
    def _compiles(self) -> bool:
        return self.changes <= COMPILED_CHANGES

    @property
    def active(self) -> bool:
        """Whether steps are taken by graphs now."""
        return self.depth != "eager" and not self.wait and not self._hook

    @property
    def whole_steps(self) -> bool:
        """Whether graphs contain the optimiser's update too."""
        return self.depth in ("step", "block")

    @property
    def validation(self) -> CapturedELBO | None:
        """What evaluates validation batches: each shape is seen a few times an epoch, and recorded only."""
        return self._validation if self.active else None

    def check(self, optimizer: Any) -> None:
        """Check whether the graphs are still valid: before each epoch, after all callbacks.

        If parameters, modes, hooks or options have changed, new graphs are made; if only a number has, the next step is
        compared with the program first.  After a change, steps are taken eagerly until an epoch has passed without
        another one; after several changes, for several epochs.
        """
        if self.depth == "eager":
            return
        settings = {k: v for k, v in vars(self.objective).items() if not k.startswith("_") and k != "step"}
        pair = (self.program.model, self.program.guide)
        now = snapshot([*pair, settings], optimizer if self.whole_steps else None)
        before, self._before = self._before, now
        if now.hook and not self._hook:
            self._say(f"the program runs eagerly, not captured: {now.hook}, which no graph can call")
        self._hook = now.hook
        if before is None or now == before:
            self.wait = max(0, self.wait - 1)
        elif self.wait or now.structure != before.structure or self._lost(before, now):
            self._renew()
        else:
            self._verify = True
            for captured in (self.captured, self._validation):
                if captured is not None:
                    captured.verify_next(self._renew)

    def _lost(self, before: Snapshot, now: Snapshot) -> bool:
        """Whether a graph reads a tensor that the program no longer has."""
        gone = before.tensors - now.tensors
        graphs = [g for c in (self.captured, self._validation) if c is not None for g in c.graphs()]
        graphs += [] if self.steps is None else self.steps.graphs()
        return any(id(t) in gone for graph in graphs for t in graph.externals)

    def _renew(self) -> None:
        self.changes += 1
        self.wait = min(self.changes, LONGEST_WAIT)
        self._verify = False
        logger.info("the program has changed since it was captured: steps are taken eagerly, and it is captured again")
        self._begin()

    @property
    def block(self) -> int:
        """Steps to take at once."""
        return BLOCK if self.depth == "block" else 1

    def gradients(self, batch: Any, share: float) -> tuple[Tensor, list[Tensor], list[Tensor]] | None:
        """Loss, leaves and gradients of a batch, the gradients times ``share``."""
        if self.captured is None or not self.active or self.whole_steps:
            return None
        args, kwargs = split_batch(batch)
        return self.captured.loss_and_gradients(self.program.model, self.program.guide, args, kwargs, share)

    def step(self, batch: Any, parameters: Sequence[Tensor], optimizer: Any) -> tuple[Tensor, Tensor] | None:
        """Loss and gradient norm of a whole step, taken.  The optimiser must have taken one before."""
        if not self.whole_steps or not self.active:
            return None
        key = quick_key(batch)
        try:
            steps = self._prepared(batch, parameters, optimizer)
            if key not in steps.shapes:
                if key is None or (key != self.common and len(steps.shapes) > OTHER_SHAPES):
                    return None
                steps.capture(batch, compile=key == self.common)
            if self._is_outdated(lambda: steps.verify(batch)):
                return None
            self.objective.advance()
            return steps.step(batch)
        except CannotCapture as reason:
            self._give_up(str(reason))
            return None

    def steps_of(self, batches: TensorBatches, order: Tensor, parameters: Sequence[Tensor], optimizer: Any) -> Any:
        """Losses and gradient norms, ``(steps, 2)``, of a block of steps on the rows that ``order`` names, taken."""
        if self.depth != "block" or not self.active:
            return None
        try:
            steps = self._prepared(take_rows(batches.data, order[0]), parameters, optimizer)
            if not steps.has_block(batches.data, order):
                steps.capture_block(batches.data, order, take_rows)
            if self._is_outdated(lambda: steps.verify_block(batches.data, order)):
                return None
            for _ in order:
                self.objective.advance()
            return steps.block(batches.data, order)
        except CannotCapture as reason:
            self._give_up(str(reason))
            return None

    def _prepared(self, batch: Any, parameters: Sequence[Tensor], optimizer: Any) -> CapturedSteps:
        if self.steps is None:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise CannotCapture("there are several optimisers")
            model, guide = self.program.model, self.program.guide
            backend = "inductor" if self._compiles else "aten"
            options = self.share, self.clip_norm, backend
            steps = CapturedSteps(self.objective, model, guide, parameters, optimizer, *options)
            steps.prepare(batch)
            self.steps = steps
        return self.steps

    def _is_outdated(self, agrees: Callable[[], bool]) -> bool:
        """Whether the steps' graph is to be compared with the program and is not what it does now."""
        if not self._verify:
            return False
        self._verify = False
        if agrees():
            return False
        self._renew()
        return True

    def _give_up(self, reason: str) -> None:
        self.depth, self.steps = "graph", None
        self._say(f"the optimiser's update stays outside of the graph: {reason}")

    def _say(self, message: str) -> None:
        if self.asked == "auto":
            logger.info(message)
        else:
            warnings.warn(message, RuntimeWarning, stacklevel=3)
