"""Whole training steps as static graphs: gradient and optimiser's update, one at a time or in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.capture.recorded import Recorded, difference
from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer.objectives import Objective
from pyro_dgm.infer.objectives.evaluation_graph import buffers_of, leaves_of, split_tensors
from pyro_dgm.programs import param_messages, split_batch
from pyro_dgm.programs.tensors import batch_length

__all__ = ["CapturedSteps", "in_place", "quick_key"]

Optimizer = torch.optim.Optimizer


class CapturedSteps:
    """Whole training steps as graphs that update parameters and optimiser state in place.

    A step whose loss or gradient is not finite changes nothing, and neither do the later steps of its block, so that
    a bad step is found with the weights that led to it.

    :param objective: the objective.
    :param parameters: the parameters that the optimiser steps.
    :param optimizer: any of :mod:`torch.optim` that is ``capturable``, or steps without looking at values; its state
        must exist (it has taken a step).
    :param share: the loss's weight in the gradient for a batch of that many data.
    :param clip_norm: clip the gradient's norm to this.
    :param backend: ``"inductor"`` or ``"aten"``.
    """

    def __init__(
        self,
        objective: Objective,
        model: Any,
        guide: Any,
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        share: Callable[[int], float],
        clip_norm: float | None = None,
        backend: str = "inductor",
    ) -> None:
        self.objective, self.model, self.guide = objective, model, guide
        self.parameters, self.optimizer = list(parameters), optimizer
        self.share, self.clip_norm, self.backend = share, clip_norm, backend
        # No pass: tensors that the program keeps (an annealed weight) may change between steps, so are no constants.
        self._recorded = Recorded("its step", passes=())
        self._graphs = self._recorded.graphs
        like = parameters[0]
        self._rates = [like.new_tensor(float(g["lr"])) for g in optimizer.param_groups]
        #: the learning rates are numbers in the graphs, which are dropped when one changes
        self.fixed_rates = False
        self._set = [float(g["lr"]) for g in optimizer.param_groups]

    @property
    def shapes(self) -> Any:
        """Keys (:func:`quick_key`) of the batches that there is a graph for."""
        return self._graphs.keys()

    def has_block(self, data: Any, order: Tensor) -> bool:
        """Whether there is a graph for blocks of this shape."""
        return (order.shape, quick_key(data)) in self._graphs

    # One step

    def capture(self, batch: Any, compile: bool = True) -> None:
        """Record (and compile) the step for batches of this shape.

        :raises CannotCapture: with the reason.
        """
        flat, _, rebuild = split_tensors(*split_batch(batch))
        key, share = quick_key(batch), self.share(batch_length(batch))
        if key is None:
            raise CannotCapture("a batch holds something else than contiguous tensors")

        def function(*inputs: Tensor) -> list[Tensor]:
            args, kwargs = rebuild(inputs)
            ok = torch.ones((), dtype=torch.bool, device=self.parameters[0].device)
            loss, norm, _ = self._one(args, kwargs, share, ok)
            return [loss, norm]

        self._make(key, function, flat, compile)

    def step(self, batch: Any) -> tuple[Tensor, Tensor] | None:
        """Loss and gradient norm of a step, taken; ``None`` where no graph is for this shape."""
        key = quick_key(batch)
        if key not in self._graphs:
            return None
        found = self._run(key, _tensors(batch))
        return None if found is None else (found[0], found[1])

    # A block of steps

    def capture_block(self, data: Any, order: Tensor, take: Callable[[Any, Tensor], Any], compile: bool = True) -> None:
        """Record a block of steps on the rows of ``data`` that ``order``, ``(steps, batch size)``, names.

        :param take: gives the batch of an index, ``(batch size,)``.
        """
        flat, _, rebuild = split_tensors((data,), {})
        key = quick_key(data)
        if key is None:
            raise CannotCapture("the data hold something else than contiguous tensors")
        share, count = self.share(order.shape[1]), order.shape[0]

        def function(index: Tensor, *inputs: Tensor) -> list[Tensor]:
            (whole,), _ = rebuild(inputs)
            ok = torch.ones((), dtype=torch.bool, device=index.device)
            rows = []
            for i in range(count):
                loss, norm, ok = self._one(*split_batch(take(whole, index[i])), share, ok)
                rows.append(torch.stack([loss, norm]))
            return [torch.stack(rows)]

        self._make((order.shape, key), function, [order, *flat], compile)

    def block(self, data: Any, order: Tensor) -> Tensor | None:
        """Take the steps of a block; losses and gradient norms, ``(steps, 2)``."""
        key = (order.shape, quick_key(data))
        found = self._run(key, [order, *_tensors(data)]) if key in self._graphs else None
        return None if found is None else found[0]

    def graphs(self) -> list[Any]:
        """All graphs that it has."""
        return list(self._graphs.values())

    def verify(self, batch: Any) -> bool:
        """Whether the graph for this batch is what a step of the program does now."""
        return not difference(self._graphs[quick_key(batch)], _tensors(batch))

    def verify_block(self, data: Any, order: Tensor) -> bool:
        """The same of a block of steps."""
        return not difference(self._graphs[order.shape, quick_key(data)], [order, *_tensors(data)])

    # Behind both

    def _one(self, args: tuple, kwargs: dict, share: float, ok: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step, as operations on tensors that change in place."""
        with torch.enable_grad(), param_messages(False):
            loss, surrogate = self.objective.estimate(self.model, self.guide, args, kwargs, True)
            assert surrogate is not None
            gradients = torch.autograd.grad(surrogate * share, self._trained)
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm(gradients, foreach=False)
            if self.clip_norm is not None:
                factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
                gradients = tuple(g * factor for g in gradients)
            ok = ok & torch.isfinite(loss.detach()) & torch.isfinite(norm)
            changed = [*self._trained, *self._state()]
            before = [t.clone() for t in changed]
            for p, g in zip(self._trained, gradients, strict=True):
                p.grad = g
            with in_place(self.optimizer, None if self.fixed_rates else self._rates):
                self.optimizer.step()
            for p in self._trained:
                p.grad = None
            for tensor, old in zip(changed, before, strict=True):
                tensor.copy_(torch.where(ok, tensor, old))
        return loss.detach(), norm, ok

    def _state(self) -> list[Tensor]:
        return [v for p in self._trained for v in self.optimizer.state.get(p, {}).values() if isinstance(v, Tensor)]

    def _make(self, key: Any, function: Callable[..., list[Tensor]], flat: Sequence[Tensor], compile: bool) -> None:
        if not hasattr(self, "_trained"):
            raise CannotCapture("prepare() comes first")
        known = [*self._trained, *self._state(), *self._rates, *self._buffers]
        gradients = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        # Calls and allocations in C++ where that works: they are most of a small program's step.
        options: list[dict[str, Any]] = [{"cpp_wrapper": True}, {}] if compile and self.backend == "inductor" else []
        try:
            try:
                graph = self._recorded.record(key, function, flat, known=known)
            except CannotCapture:
                if self.fixed_rates:
                    raise
                # An optimiser that needs its learning rate as a number: good for as long as that stays what it is.
                self.fixed_rates = True
                graph = self._recorded.record(key, function, flat, known=known)
            self._recorded.compile(graph, flat, options)
        finally:
            for p, g in zip(self.parameters, gradients, strict=True):
                p.grad = g

    def prepare(self, batch: Any) -> None:
        """Look up what a step reads and writes, on one batch.

        :raises CannotCapture: if the optimiser cannot be part of a graph.
        """
        args, kwargs = split_batch(batch)
        leaves = {id(t) for t in leaves_of(self.objective, self.model, self.guide, args, kwargs)}
        self._trained = [p for p in self.parameters if id(p) in leaves]
        self._buffers = buffers_of(self.objective, self.model, self.guide)
        missing = [p for p in self._trained if not self.optimizer.state.get(p)]
        stateless = isinstance(self.optimizer, torch.optim.SGD)
        name = type(self.optimizer).__name__
        if missing and not stateless:
            raise CannotCapture(f"{name} has no state yet")
        for p in self._trained:
            for key, value in self.optimizer.state.get(p, {}).items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    raise CannotCapture(f"{name} keeps its {key!r} as a number, which a graph would freeze")

    def _run(self, key: Any, flat: Sequence[Tensor]) -> Sequence[Tensor] | None:
        for i, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self._set[i]:
                if self.fixed_rates:
                    self._graphs.clear()
                    return None
                self._set[i] = float(group["lr"])
                self._rates[i].detach().fill_(self._set[i])
        self._recorded.check(key, flat)
        return self._graphs[key](*flat)


def quick_key(batch: Any) -> Any:
    """Shapes and types of a batch of contiguous tensors, looked at on every step; ``None`` for anything else."""
    if isinstance(batch, Tensor):
        return (batch.shape, batch.dtype) if batch.is_contiguous() and not batch.requires_grad else None
    if isinstance(batch, (tuple, list)):
        parts = tuple([quick_key(b) for b in batch])
    elif isinstance(batch, Mapping):
        parts = tuple([(k, quick_key(b)) for k, b in batch.items()])
        return None if any(part is None for _, part in parts) else parts
    else:
        return None
    return None if None in parts else parts


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return [t for part in (batch.values() if isinstance(batch, Mapping) else batch) for t in _tensors(part)]


@contextmanager
def in_place(optimizer: Optimizer, rates: Sequence[Tensor] | None) -> Iterator[None]:
    """An optimiser whose step is tensor operations alone: capturable, neither fused nor looped, its rates tensors."""
    kept = [dict(g) for g in optimizer.param_groups]
    try:
        for i, group in enumerate(optimizer.param_groups):
            for option, value in (("capturable", True), ("fused", False), ("foreach", False)):
                if option in group:
                    group[option] = value
            if rates is not None:
                group["lr"] = rates[i]
                if isinstance(optimizer, torch.optim.SGD):
                    # Only then does SGD multiply by a rate that is a tensor instead of reading its value.
                    group["differentiable"] = True
                    group["lr"] = rates[i].requires_grad_()
        # Torch allows capturable steps on a CPU only to its own compiler, which this is the front of.
        with torch.compiler._compile_session_context():
            yield
    finally:
        for group, values in zip(optimizer.param_groups, kept, strict=True):
            group.update(values)
