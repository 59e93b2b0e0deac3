"""One evaluation of an objective as a static graph, and how it is held against the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_dgm.capture.static_graph import CannotCapture, StaticGraph, agreement, record
from pyro_dgm.capture.trial import Trial, trial
from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.programs import announcing, owner_modules

__all__ = [
    "CHECKED_CALLS",
    "EvaluationGraph",
    "buffers_of",
    "capture_evaluation",
    "differences",
    "leaves_of",
    "split_tensors",
]

#: calls of a graph at which it is held against the program again: the second batch shows what the first one froze
CHECKED_CALLS = frozenset([2, 10, 100, *(1000 * n for n in range(1, 1000))])


@dataclass
class EvaluationGraph:
    """A graph with the function that it stands for."""

    graph: StaticGraph
    function: Callable[..., Sequence[Tensor]]
    #: leaves that gradients are given for, in order
    wrt: list[Tensor] = field(default_factory=list)
    #: positions of the inputs that gradients are given for after those
    graded_inputs: list[int] = field(default_factory=list)
    calls: int = 0

    def __call__(self, flat: Sequence[Tensor]) -> list[Tensor]:
        return list(self.graph(*flat))

    def compile(self, flat: Sequence[Tensor], cuda_graphs: bool = False) -> None:
        self.graph.compile(flat, cuda_graphs)
        if difference := self.differs(flat):
            raise CannotCapture(f"compiled, its graph gives something else: {difference}")

    def differs(self, flat: Sequence[Tensor], may_fail: bool = False) -> str:
        """What is different between graph and function on these inputs; nothing is left changed.

        :param may_fail: the function may not take these inputs at all, and then nothing is said.
        """
        faces = [t.detach().requires_grad_(t.requires_grad) for t in flat]
        try:
            expected = trial(self.function, faces, self.graph.externals)
            found = trial(self.graph, faces, self.graph.externals)
        except Exception as error:  # the program itself fails now: the eager evaluation will say so in its own words
            return "" if may_fail else f"{type(error).__name__} in the comparison"
        return differences(expected, found)


def differences(expected: Trial, found: Trial) -> str:
    """What one trial did that the other did not; ``""`` if they are the same up to rounding."""
    if not torch.equal(expected.random_state, found.random_state):
        return "it draws other random numbers"
    if expected.written.keys() != found.written.keys():
        return "it writes other tensors"
    written = [expected.written[i] for i in found.written], list(found.written.values())
    return agreement(expected.results, found.results) or agreement(*written)


def capture_evaluation(
    objective: Objective,
    kind: str,
    scale: float,
    model: Any,
    guide: Any,
    flat: Sequence[Tensor],
    rebuild: Callable[..., Any],
) -> EvaluationGraph:
    """Record an objective's ``"loss"``, ``"bound"`` or loss and ``"gradient"``, and compare it with the objective.

    :param scale: of the gradient.
    """
    wrt: list[Tensor] = []
    graded = [i for i, t in enumerate(flat) if t.requires_grad] if kind == "gradient" else []

    def function(*inputs: Tensor) -> list[Tensor]:
        args, kwargs = rebuild(inputs)
        with announcing(False):
            if kind == "bound":
                assert isinstance(objective, ParticleObjective)
                return [objective.bound(model, guide, *args, **kwargs)]
            if kind == "loss":
                with torch.no_grad():
                    return [objective.estimate(model, guide, args, kwargs, False)[0]]
            with torch.enable_grad():
                loss, surrogate = objective.estimate(model, guide, args, kwargs, True)
                assert surrogate is not None
                if not wrt and not graded:
                    raise CannotCapture("the loss depends on no parameter")
                targets = [*wrt, *(inputs[i] for i in graded)]
                return [loss.detach(), *torch.autograd.grad(surrogate if scale == 1.0 else surrogate * scale, targets)]

    faces = [t.detach().requires_grad_(t.requires_grad) for t in flat]
    args, kwargs = rebuild(faces)
    objective.prepare(model, guide, args, kwargs)  # checks the pair, and builds what is lazy
    if kind == "gradient":
        wrt.extend(leaves_of(objective, model, guide, args, kwargs, exclude=faces))
    known = list({id(t): t for t in (*wrt, *buffers_of(objective, model, guide))}.values())
    graph = trial(lambda *inputs: record(function, inputs, known), faces, known).results
    entry = EvaluationGraph(graph, function, wrt, graded)
    if difference := entry.differs(flat):
        raise CannotCapture(f"its graph gives something else than the program: {difference}")
    if difference := entry.differs([t.flip(0) if t.dim() else t for t in flat], may_fail=True):
        raise CannotCapture(f"it reads data in a way that a graph would freeze (on other data {difference})")
    return entry


def leaves_of(
    objective: Objective, model: Any, guide: Any, args: tuple, kwargs: dict, exclude: Sequence[Tensor] = ()
) -> list[Tensor]:
    """The leaf tensors that the loss depends on differentiably, found by walking back from it."""

    def surrogate() -> Any:
        with torch.enable_grad(), announcing(False):
            return objective.estimate(model, guide, args, kwargs, True)[1]

    skip = {id(t) for t in exclude}
    return [
        t for t in _accumulated(trial(surrogate, (), buffers_of(objective, model, guide)).results) if id(t) not in skip
    ]


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
