"""One evaluation of an objective as a function of tensors, which a graph can be recorded of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_dgm.capture.dry_run import dry_run
from pyro_dgm.capture.recorded import aliased
from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.programs import owner_modules, param_messages

__all__ = ["Evaluation", "buffers_of", "leaves_of", "split_tensors"]


class Evaluation:
    """An objective's ``"loss"``, ``"bound"``, or loss and ``"gradient"``, as a function of a batch's tensors.

    :param scale: of the gradient.
    :param flat: the tensors of a batch, and ``rebuild``, which puts the batch together.
    :ivar wrt: leaves that gradients are given for, in order.
    :ivar graded_inputs: positions of the inputs that gradients are given for after those.
    """

    def __init__(
        self,
        objective: Objective,
        kind: str,
        scale: float,
        model: Any,
        guide: Any,
        flat: Sequence[Tensor],
        rebuild: Callable[..., Any],
    ) -> None:
        self.objective, self.kind, self.scale = objective, kind, scale
        self.model, self.guide, self.rebuild = model, guide, rebuild
        aliases = aliased(flat)
        args, kwargs = rebuild(aliases)
        objective.prepare(model, guide, args, kwargs)  # checks the pair, and builds what is lazy
        self.wrt: list[Tensor] = []
        self.graded_inputs: list[int] = []
        if kind == "gradient":
            self.wrt = leaves_of(objective, model, guide, args, kwargs, exclude=aliases)
            self.graded_inputs = [i for i, t in enumerate(flat) if t.requires_grad]
        #: tensors that it is known to read or write
        self.known = list({id(t): t for t in (*self.wrt, *buffers_of(objective, model, guide))}.values())

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        objective, pair = self.objective, (self.model, self.guide)
        args, kwargs = self.rebuild(inputs)
        with param_messages(False):
            if self.kind == "bound":
                assert isinstance(objective, ParticleObjective)
                return [objective.bound(*pair, *args, **kwargs)]
            if self.kind == "loss":
                with torch.no_grad():
                    return [objective.estimate(*pair, args, kwargs, False)[0]]
            with torch.enable_grad():
                loss, surrogate = objective.estimate(*pair, args, kwargs, True)
                assert surrogate is not None
                targets = [*self.wrt, *(inputs[i] for i in self.graded_inputs)]
                if not targets:
                    raise CannotCapture("the loss depends on no parameter")
                scaled = surrogate if self.scale == 1.0 else surrogate * self.scale
                return [loss.detach(), *torch.autograd.grad(scaled, targets)]


def leaves_of(
    objective: Objective, model: Any, guide: Any, args: tuple, kwargs: dict, exclude: Sequence[Tensor] = ()
) -> list[Tensor]:
    """The leaf tensors that the loss depends on differentiably, found by walking back from it."""

    def surrogate() -> Any:
        with torch.enable_grad(), param_messages(False):
            return objective.estimate(model, guide, args, kwargs, True)[1]

    skip = {id(t) for t in exclude}
    root = dry_run(surrogate, (), buffers_of(objective, model, guide)).results
    return [t for t in _accumulated(root) if id(t) not in skip]


def buffers_of(objective: Objective, model: Any, guide: Any) -> list[Tensor]:
    owners = [m for fn in (model, guide) for m in owner_modules(fn)]
    found = [*objective.buffers(), *(b for m in owners for b in m.buffers())]
    return list({id(b): b for b in found}.values())


def _accumulated(root: Tensor) -> Iterator[Tensor]:
    stack, seen = [root.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(following for following, _ in node.next_functions)


def split_tensors(args: tuple, kwargs: dict) -> tuple[list[Tensor], Any, Callable[[Sequence[Tensor]], Any]]:
    """The tensors of a call, a hashable key of all that a graph freezes of it, and how to put the call together."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    flat = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    key = tuple(
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad)
        if isinstance(leaf, Tensor)
        else (type(leaf), leaf)
        for leaf in leaves
    )
    hash(key)

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if isinstance(v, Tensor) else v for v in leaves], spec)

    return flat, (key, str(spec)), rebuild
