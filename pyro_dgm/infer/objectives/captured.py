"""Programs at compiled speed: an objective or a potential as one static graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from pyro_dgm.capture.recorded import Recorded, difference
from pyro_dgm.capture.snapshot import hook_of, module_key
from pyro_dgm.capture.static_graph import CannotCapture, StaticGraph
from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.bounds.elbo import ELBO
from pyro_dgm.infer.objectives.evaluation_graph import Evaluation, split_tensors
from pyro_dgm.infer.objectives.metric import BOUND
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.programs import emit_param_message, owner_modules
from pyro_dgm.programs.parameters import leaves_the_store
from pyro_dgm.programs.structure import weak

__all__ = ["CapturedELBO"]

logger = logging.getLogger("pyro_dgm")

#: changes that :meth:`CapturedELBO.verify` finds before a program runs eagerly, since every new graph takes time
MAX_REPORTED_CHANGES = 5


class CapturedELBO(Objective):
    r"""Any objective of the library, evaluated as one compiled graph of tensor operations.

    The program and the estimator run once while their tensor operations are recorded, gradient and random draws
    included; from then on the graph runs in their place, without Pyro's handlers, distributions' constructors or
    autograd.  Value, gradient and random stream are those of the objective inside, seed for seed.
    :func:`pyro_dgm.fit` captures by itself; this class is for loops of your own and for ``pyro.infer.SVI``.

    A graph is recorded for each batch shape (and for training and evaluation mode), compared with the program when it
    is made and again at its 2nd, 10th, 100th and every 1 000th call.  Seen on every call are modes, submodules,
    parameters and hooks of the program's modules, and whether a parameter is trained: where one of them has changed, a
    new graph is made.  Python numbers that the program reads are not checked on every call: after changing one, call
    :meth:`verify` with a batch (:func:`pyro_dgm.fit` checks them by itself after each epoch).  A program with hooks
    runs eagerly while it has them.  One whose structure depends on values (``.item()``, ``bool(tensor)``), that
    draws from Python's random numbers, or that changes from call to call, runs eagerly and a warning says why; so does
    a batch shape beyond the first few.  Inside handlers of your own the program runs eagerly, for they might change it.

    :param objective: the objective, by default :class:`~pyro_dgm.infer.ELBO`.
    :param backend: ``"inductor"`` compiles the graph of the first batch shape at once and that of others when they have
        come ``compile_after`` times; ``"aten"`` runs graphs uncompiled: Pyro's overhead is gone, without a wait.
    :param cuda_graphs: on a CUDA device, replay a compiled graph's kernels as one CUDA graph (torch.compile's
        ``mode="reduce-overhead"``): for small kernels, whose launches take longer than they do.
    :param compile_after: calls after which further shapes are compiled too; ``None`` leaves them as recorded.
    :param say: called with the reason where a program runs eagerly; by default it is a warning.
    :param max_graphs: graphs kept for a program; more shapes than that run eagerly.
    :raises TypeError: if ``objective`` is not of this library (Pyro's own read the loss's value on every step, which a
        graph cannot do).

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

    metric = BOUND
    side: str | None = "lower"
    #: it is a graph already
    capturable = False

    def __init__(
        self,
        objective: Objective | None = None,
        *,
        backend: str = "inductor",
        cuda_graphs: bool = False,
        max_graphs: int = 6,
        compile_after: int | None = 50,
        say: Callable[[str], None] | None = None,
    ) -> None:
        inner = ELBO() if objective is None else objective
        if not (isinstance(inner, Objective) and inner.capturable):
            raise TypeError(
                f"objective must be an objective of pyro_dgm.infer, got {type(inner).__name__}: Pyro's own read the "
                "loss's value on every step"
            )
        if backend not in ("inductor", "aten"):
            raise ValueError(f"backend must be 'inductor' or 'aten', got {backend!r}")
        super().__init__()
        for name in ("num_particles", "vectorize_particles", "strict_enumeration_warning", "retain_graph"):
            setattr(self, name, getattr(inner, name))
        check_count("max_graphs", max_graphs)
        check_count("compile_after", compile_after, optional=True)
        self.inner, self.backend, self.max_graphs = inner, backend, max_graphs
        self.compile_after, self.say, self.cuda_graphs = compile_after, say, bool(cuda_graphs)
        self.side, self.metric = getattr(inner, "side", None), inner.metric
        self._pairs: list[_Pair] = []
        #: whether every call checks the program's modules; a training loop checks them once per epoch instead
        self.checks_modules = True
        self._if_changed: Callable[[], None] | None = None

    # The objective inside

    @property
    def learned(self) -> torch.nn.Module | None:  # type: ignore[override]
        return self.inner.learned

    @property
    def step(self) -> int:  # type: ignore[override]
        return self.inner.step

    def advance(self) -> None:
        self.inner.advance()

    def prepare(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> None:
        self.inner.prepare(model, guide, args, kwargs)

    def is_sum(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> bool:
        return self.inner.is_sum(model, guide, args, kwargs)

    def buffers(self) -> list[Tensor]:
        return self.inner.buffers()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)

    # The four methods

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        graph, flat = self._graph(("gradient" if grad else "loss", 1.0), model, guide, args, kwargs)
        if graph is None:
            return self.inner.estimate(model, guide, args, kwargs, grad)
        if _PYRO_STACK:  # SVI asks which parameters there are
            for i, parameter in enumerate(graph.function.wrt):
                emit_param_message(f"captured.{id(parameter)}.{i}", parameter)
        loss, *gradients = graph(*flat)
        if not grad:
            return loss, None
        inputs = [flat[i] for i in graph.function.graded_inputs]
        return loss, _WithGradients.apply(loss, gradients, *graph.function.wrt, *inputs)

    @leaves_the_store
    @torch.no_grad()
    def bound(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The bound of each datum, as the objective inside has it."""
        if not isinstance(self.inner, ParticleObjective):
            raise TypeError(f"{type(self.inner).__name__} has no bound per datum")
        graph, flat = self._graph(("bound", 1.0), model, guide, args, kwargs)
        return self.inner.bound(model, guide, *args, **kwargs) if graph is None else graph(*flat)[0]

    # Graphs

    def status(self, model: Callable[..., Any], guide: Callable[..., Any]) -> str:
        """How this pair is evaluated: by how many graphs, or eagerly and why."""
        return self._pair(model, guide).recorded.status()

    @leaves_the_store
    def verify(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Compare the graphs of this batch's shape with the program; where one differs, all graphs are made anew.

        :returns: whether they agree (``True`` also where there is no graph).
        """
        pair = self._pair(model, guide)
        flat, key, _ = split_tensors(args, kwargs)
        graphs = pair.recorded.graphs
        same_shape = [g for k, g in graphs.items() if k[1:3] == (key, pair.modes())]
        found = next((d for g in same_shape if (d := difference(g, flat))), "")
        if found:
            graphs.clear()  # what the program reads is the same for all shapes
            pair.changes += 1
            if pair.changes > MAX_REPORTED_CHANGES:
                pair.recorded.give_up(f"it has changed more than {MAX_REPORTED_CHANGES} times ({found})")
        return not found

    def verify_next(self, if_changed: Callable[[], None]) -> None:
        """Compare the next evaluation with the program; where it differs, drop the graphs and call ``if_changed``."""
        self._if_changed = if_changed

    def graphs(self) -> list[Any]:
        """All graphs that it has."""
        return [g for pair in self._pairs for g in pair.recorded.graphs.values()]

    def _pair(self, model: Any, guide: Any) -> _Pair:
        for pair in self._pairs:
            if pair.model() == model and pair.guide() == guide:
                return pair
        pair = _Pair(weak(model), weak(guide), _modules_of(model, guide), self._recorded())
        self._pairs = [*self._pairs[-3:], pair]
        return pair

    def loss_and_gradients(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, scale: float
    ) -> tuple[Tensor, list[Tensor], list[Tensor]] | None:
        """Loss, leaves and the gradients of ``scale * loss`` by them; ``None`` where the program runs eagerly.

        For training loops: no autograd is in the way, and ``advance`` has been called.
        """
        graph, flat = self._graph(("gradient", scale), model, guide, args, kwargs)
        if graph is None:
            return None
        self.advance()
        loss, *gradients = graph(*flat)
        return loss, graph.function.wrt, gradients[: len(graph.function.wrt)]

    def _recorded(self) -> Recorded:
        # No pass: tensors that the program keeps (an annealed weight) may change between calls, so are no constants.
        return Recorded("the program", most=self.max_graphs, forgiven=1, passes=(), say=self._warn)

    def _graph(
        self, kind: tuple[str, float], model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[StaticGraph | None, list]:
        if any(not (isinstance(h, TraceMessenger) and h.param_only) for h in _PYRO_STACK):
            return None, []
        pair = self._pair(model, guide)
        recorded = pair.recorded
        if recorded.reason or (self.checks_modules and self._has_hooks(pair)):
            return None, []
        try:
            flat, key, rebuild = split_tensors(args, kwargs)
            full = (kind, key, pair.modes(), module_key(pair.modules) if self.checks_modules else ())
            graph = recorded.graphs.get(full)
        except TypeError as error:  # an argument that cannot be compared: its content might change unnoticed
            recorded.give_up(f"an argument is neither tensor nor hashable ({error})")
            return None, []
        if graph is not None and self.checks_modules and not all(t.requires_grad for t in graph.function.wrt):
            graph = None  # a parameter of no module, in a closure say, is not trained any more
        if graph is not None and self._if_changed is not None and difference(graph, flat):
            recorded.graphs.clear()
            self._if_changed()
            return None, []
        self._if_changed = None
        try:
            if graph is None:
                if self.checks_modules:
                    full = (*full[:2], *pair.renewed())
                if recorded.is_full():
                    return None, []
                evaluation = Evaluation(self.inner, *kind, model, guide, flat, rebuild)
                graph = recorded.record(
                    full, evaluation, flat, known=evaluation.known,
                    other_inputs=[t.flip(0) if t.dim() else t for t in flat],
                    compile=() if any(k[0] == kind for k in recorded.graphs) else self._options(),
                )  # fmt: skip
            if not recorded.check(full, flat):
                return self._graph(kind, model, guide, args, kwargs)
        except CannotCapture as reason:
            recorded.give_up(str(reason))
            return None, []
        if graph.calls == self.compile_after and self._options() and graph.backend == "aten":
            try:
                recorded.compile(graph, flat, self._options())
            except CannotCapture as reason:
                logger.info("a graph stays uncompiled: %s", reason)
        return graph, flat

    def _options(self) -> list[dict[str, Any]]:
        return [{"cuda_graphs": self.cuda_graphs}] if self.backend == "inductor" else []

    def _has_hooks(self, pair: _Pair) -> bool:
        if not (hook := hook_of(pair.modules)):
            return False
        if not pair.hooked:
            pair.hooked = True
            self._warn(f"{hook}, which no graph can call")
        return True

    def _warn(self, reason: str) -> None:
        message = f"the program runs eagerly, not captured: {reason}"
        if self.say is None:
            warnings.warn(message, RuntimeWarning, stacklevel=6)
        else:
            self.say(message)

    def __getstate__(self) -> dict[str, Any]:  # graphs cannot be copied; they are made again
        return {**self.__dict__, "_pairs": []}

    def __repr__(self) -> str:
        return f"CapturedELBO({self.inner!r}, num_particles={self.num_particles})"


def _modules_of(model: Any, guide: Any) -> list[torch.nn.Module]:
    modules = [m for fn in (model, guide) for owner in owner_modules(fn) for m in owner.modules()]
    return list(dict.fromkeys(modules))


@dataclass
class _Pair:
    """A model and a guide, and the graphs made of them."""

    model: Any
    guide: Any
    modules: list[torch.nn.Module]
    recorded: Recorded
    hooked: bool = False
    changes: int = 0

    def modes(self) -> tuple[bool, ...]:
        return tuple([m.training for m in self.modules])

    def renewed(self) -> tuple[Any, ...]:
        """Drop the graphs of modules and parameters that the program has no longer; the keys of those it has."""
        self.modules = _modules_of(self.model(), self.guide())
        key = module_key(self.modules)
        graphs = self.recorded.graphs
        for k in [k for k, g in graphs.items() if k[3] != key or not all(t.requires_grad for t in g.function.wrt)]:
            del graphs[k]
        return self.modes(), key


class _WithGradients(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *wrt: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of a captured loss is there once: retain_graph has no effect on it")
        # On a CPU reading the value costs nothing, and usually saves a pass over the gradients.
        if grad.device.type != "cpu" or float(grad) != 1.0:
            gradients = torch._foreach_mul(gradients, grad)
        return (None, None, *gradients)
