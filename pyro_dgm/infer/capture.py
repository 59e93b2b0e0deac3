"""Programs at compiled speed: an objective or a potential as one static graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_dgm.infer.elbo import ELBO, Objective
from pyro_dgm.infer.elbo.particles import Particles
from pyro_dgm.infer.elbo.structure import Structure, weak
from pyro_dgm.infer.static_graph import CannotCapture, StaticGraph, agreement, record
from pyro_dgm.infer.trial import Trial, trial
from pyro_dgm.programs import announce_parameter, announcing, owner_modules

__all__ = ["CapturedELBO", "capture_evaluation", "leaves_of", "split_tensors"]

logger = logging.getLogger("pyro_dgm")

#: calls of a graph at which it is held against the program again: the second batch shows what the first one froze
CHECKED_CALLS = frozenset([2, 10, 100, *(1000 * n for n in range(1, 1000))])


class CapturedELBO(Objective):
    r"""Any objective of the library, evaluated as one compiled graph of tensor operations.

    The program and the estimator run once while their tensor operations are recorded, gradient and random draws
    included; from then on the graph runs in their place, without Pyro's handlers, distributions' constructors or
    autograd.  Value, gradient and random stream are those of the objective inside, seed for seed.
    :func:`pyro_dgm.fit` captures by itself; this class is for loops of your own and for ``pyro.infer.SVI``.

    A graph is recorded for each batch shape (and for training and evaluation mode), compared with the program when it
    is made and again at its 2nd, 10th, 100th and every 1 000th call.  A program whose structure depends on values
    (``.item()``, ``bool(tensor)``), that draws from Python's random numbers, or that has changed twice, runs
    eagerly and a warning says why; so does a batch shape beyond the first few.  Inside handlers of your own the program
    runs eagerly, for they might change it.

    :param objective: the objective, by default :class:`~pyro_dgm.infer.ELBO`.
    :param backend: ``"inductor"`` compiles the graph of the first batch shape at once and that of others when they have
        come 50 times; ``"aten"`` runs graphs uncompiled: Pyro's overhead is gone, and nothing is waited for.
    :param max_graphs: graphs kept for a program; more shapes than that run eagerly.
    :raises TypeError: if ``objective`` is not of this library (Pyro's own test their loss on every step, which no graph
        can hold).

    Source: the recording is torch's ``make_fx``, the compiler inductor (J. Ansel et al., 2024, "PyTorch 2", ASPLOS,
    doi:10.1145/3620665.3640366).

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import CapturedELBO, IWAE
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> captured = CapturedELBO(IWAE(8), backend="aten")
        >>> loss = captured(m.model, m.guide)(torch.zeros(7, 3))
        >>> loss.backward()
        >>> captured.status(m.model, m.guide)
        'captured: 1 graph (aten)'
    """

    def __init__(self, objective: Objective | None = None, *, backend: str = "inductor", max_graphs: int = 6) -> None:
        inner = ELBO() if objective is None else objective
        if not isinstance(inner, Objective) or isinstance(inner, CapturedELBO):
            raise TypeError(
                f"objective must be an objective of pyro_dgm.infer, got {type(inner).__name__}: Pyro's own look at the "
                "loss's value on every step"
            )
        if backend not in ("inductor", "aten"):
            raise ValueError(f"backend must be 'inductor' or 'aten', got {backend!r}")
        super().__init__(
            num_particles=inner.num_particles,
            vectorize_particles=inner.vectorize_particles,
            strict_enumeration_warning=inner.strict_enumeration_warning,
            retain_graph=inner.retain_graph,
        )
        self.inner, self.backend, self.max_graphs = inner, backend, int(max_graphs)
        self.side = inner.side
        self._pairs: list[_Pair] = []

    # The objective inside

    @property
    def learned(self) -> torch.nn.Module | None:  # type: ignore[override]
        return self.inner.learned

    @property
    def step(self) -> int:  # type: ignore[override]
        return self.inner.step

    def advance(self) -> None:
        self.inner.advance()

    def structure(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Structure:
        return self.inner.structure(model, guide, args, kwargs)

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        return self.inner.particles(model, guide, args, kwargs, grad=grad)

    def bound_of(self, particles: Particles) -> Tensor:
        return self.inner.bound_of(particles)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        return self.inner.surrogate_of(particles, bound)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)

    # The four methods

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        entry, flat = self._entry("gradient" if grad else "loss", model, guide, args, kwargs)
        if entry is None:
            return self.inner.estimate(model, guide, args, kwargs, grad)
        if _PYRO_STACK:  # SVI asks which parameters there are
            for i, parameter in enumerate(entry.wrt):
                announce_parameter(f"captured.{id(parameter)}.{i}", parameter)
        loss, *gradients = entry(flat)
        if not grad:
            return loss, None
        inputs = [flat[i] for i in entry.graded_inputs]
        return loss, _WithGradients.apply(loss, gradients, *entry.wrt, *inputs)

    @torch.no_grad()
    def bound(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        entry, flat = self._entry("bound", model, guide, args, kwargs)
        return self.inner.bound(model, guide, *args, **kwargs) if entry is None else entry(flat)[0]

    # Graphs

    def status(self, model: Callable[..., Any], guide: Callable[..., Any]) -> str:
        """How this pair is evaluated: by how many graphs, or eagerly and why."""
        pair = self._pair(model, guide)
        if pair.reason:
            return f"eager: {pair.reason}"
        backends = sorted({e.graph.backend for e in pair.entries.values()})
        count = len(pair.entries)
        return f"captured: {count} graph{'s' * (count != 1)} ({', '.join(backends)})" if count else "not seen yet"

    def verify(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Hold the graph of this batch's shape against the program; a graph that is outdated is dropped.

        :returns: whether they agree (``True`` also where there is no graph).
        """
        pair = self._pair(model, guide)
        flat, key, _ = split_tensors(args, kwargs)
        found = [(k, e) for k, e in pair.entries.items() if k[1:] == (key, pair.modes())]
        agree = [self._check(pair, k, e, flat) for k, e in found]
        return all(agree)

    def _pair(self, model: Any, guide: Any) -> _Pair:
        for pair in self._pairs:
            if pair.model() == model and pair.guide() == guide:
                return pair
        modules = [m for fn in (model, guide) for owner in owner_modules(fn) for m in owner.modules()]
        pair = _Pair(weak(model), weak(guide), list(dict.fromkeys(modules)))
        self._pairs = [*self._pairs[-3:], pair]
        return pair

    def _entry(self, kind: str, model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[_Entry | None, list]:
        if any(not (isinstance(h, TraceMessenger) and h.param_only) for h in _PYRO_STACK):
            return None, []
        pair = self._pair(model, guide)
        if pair.reason:
            return None, []
        try:
            flat, key, rebuild = split_tensors(args, kwargs)
            full = (kind, key, pair.modes())
            entry = pair.entries.get(full)
        except TypeError as error:  # an argument that cannot be compared: what it holds might change unseen
            self._give_up(pair, f"an argument is neither tensor nor hashable ({error})")
            return None, []
        if entry is None:
            if len(pair.entries) >= self.max_graphs:
                if not pair.crowded:
                    pair.crowded = True
                    logger.info("more than %d batch shapes: further ones run eagerly", self.max_graphs)
                return None, []
            try:
                entry = self._capture(kind, model, guide, flat, rebuild)
                if self.backend == "inductor" and not any(k[0] == kind for k in pair.entries):
                    entry.compile(flat)
            except CannotCapture as reason:
                self._give_up(pair, str(reason))
                return None, []
            pair.entries[full] = entry
        entry.calls += 1
        if entry.calls in CHECKED_CALLS and not self._check(pair, full, entry, flat):
            return self._entry(kind, model, guide, args, kwargs)
        if entry.calls == 50 and self.backend == "inductor" and entry.graph.backend == "aten":
            try:
                entry.compile(flat)
            except CannotCapture as reason:
                logger.info("a graph stays uncompiled: %s", reason)
        return entry, flat

    def _give_up(self, pair: _Pair, reason: str) -> None:
        pair.reason = reason
        pair.entries.clear()
        warnings.warn(f"the program runs eagerly, not captured: {reason}", RuntimeWarning, stacklevel=5)

    def _check(self, pair: _Pair, key: Any, entry: _Entry, flat: Sequence[Tensor]) -> bool:
        if not (difference := entry.differs(flat)):
            return True
        del pair.entries[key]
        pair.changes += 1
        if pair.changes > 1:
            self._give_up(pair, f"it is not the same operations on every call ({difference})")
        else:
            logger.info("the program has changed since it was captured and is captured again: %s", difference)
        return False

    def _capture(self, kind: str, model: Any, guide: Any, flat: Sequence[Tensor], rebuild: Any) -> _Entry:
        return capture_evaluation(self.inner, kind, model, guide, flat, rebuild)

    def __getstate__(self) -> dict[str, Any]:  # graphs cannot be copied; they are made again
        return {**self.__dict__, "_pairs": []}

    def __repr__(self) -> str:
        return f"CapturedELBO({self.inner!r}, num_particles={self.num_particles})"


@dataclass
class _Pair:
    """A model and a guide, and the graphs made of them."""

    model: Any
    guide: Any
    modules: list[torch.nn.Module]
    entries: dict[Any, _Entry] = field(default_factory=dict)
    reason: str = ""
    changes: int = 0
    crowded: bool = False

    def modes(self) -> tuple[bool, ...]:
        return tuple([m.training for m in self.modules])


@dataclass
class _Entry:
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

    def compile(self, flat: Sequence[Tensor]) -> None:
        self.graph.compile(flat)
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


class _WithGradients(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *wrt: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (None, None, *(g * grad for g in ctx.gradients))


def capture_evaluation(
    objective: Objective, kind: str, model: Any, guide: Any, flat: Sequence[Tensor], rebuild: Callable[..., Any]
) -> _Entry:
    """Record an objective's ``"loss"``, ``"bound"`` or loss and ``"gradient"``, and compare it with the objective."""
    wrt: list[Tensor] = []
    graded = [i for i, t in enumerate(flat) if t.requires_grad] if kind == "gradient" else []

    def function(*inputs: Tensor) -> list[Tensor]:
        args, kwargs = rebuild(inputs)
        with announcing(False):
            if kind == "bound":
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
                return [loss.detach(), *torch.autograd.grad(surrogate, targets)]

    faces = [t.detach().requires_grad_(t.requires_grad) for t in flat]
    args, kwargs = rebuild(faces)
    objective.structure(model, guide, args, kwargs)  # checks the pair, and builds what is lazy
    if kind == "gradient":
        wrt.extend(leaves_of(objective, model, guide, args, kwargs, exclude=faces))
    known = list({id(t): t for t in (*wrt, *buffers_of(objective, model, guide))}.values())
    graph = trial(lambda *inputs: record(function, inputs, known), faces, known).results
    entry = _Entry(graph, function, wrt, graded)
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
    owners += [] if objective.learned is None else [objective.learned]
    return list({id(b): b for m in owners for b in m.buffers()}.values())


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
