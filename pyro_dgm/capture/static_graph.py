"""A function of tensors as one static graph: recorded once, compared with the function, compiled.

The function runs once under ``make_fx`` (Pyro's handlers are ordinary Python and leave no trace), and what is left is a
list of tensor operations, its random draws among them.  Every tensor that it reads and was not given, a parameter, a
buffer, a tensor in a closure, becomes an input of the graph by identity: the graph sees what an optimiser does to it in
place.  Whatever Python decided on the way is frozen, so a graph is never trusted unseen: it is compared with the
function under the same random state, first as recorded and then as compiled.
"""

from __future__ import annotations

import operator
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot, make_fx
from torch.overrides import TorchFunctionMode

from pyro_dgm.capture.unvalidated import unvalidated
from pyro_dgm.ops.random_state import fork_rng

__all__ = ["CannotCapture", "StaticGraph", "agreement", "is_recording", "record"]

aten = torch.ops.aten

#: tensor function of a flat list of inputs, giving a flat list of outputs
Function = Callable[..., Sequence[Tensor]]


class CannotCapture(RuntimeError):
    """A function is not the same operations on every call, or its graph is not the function; the text says why."""


@dataclass
class StaticGraph:
    """Operations recorded from a function, and the tensors from outside that they read.

    :ivar graph: the recorded operations; inputs are the function's own, then :attr:`externals`.
    :ivar externals: tensors from outside, by identity; read (and where the function does so, written) at each call.
    :ivar compiled: what runs: the graph, or what the compiler made of it.  While another function is recorded it is
        always the graph, for the larger one to take in.
    :ivar backend: ``"aten"`` or ``"inductor"``.
    """

    graph: fx.GraphModule
    externals: list[Tensor]
    compiled: Callable[..., Sequence[Tensor]]
    #: what it was recorded from
    function: Any = None
    backend: str = "aten"
    #: calls that were counted (:meth:`pyro_dgm.capture.recorded.Recorded.check`)
    calls: int = 0
    #: results are in memory that the next call writes again (CUDA graphs), and are copied out
    replayed: bool = False
    #: shapes of the externals: the compiled code trusts them
    shapes: list[torch.Size] = field(init=False)

    def __post_init__(self) -> None:
        self.shapes = [t.shape for t in self.externals]

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if [*map(_shape, self.externals)] != self.shapes:
            raise CannotCapture("a tensor that the graph reads has another shape than it was recorded with")
        with torch.no_grad():
            if is_recording():
                return self.graph(*inputs, *self.externals)
            results = self.compiled(*inputs, *self.externals)
            return [t.clone() for t in results] if self.replayed else results

    @property
    def operations(self) -> int:
        """Number of tensor operations."""
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of each tensor that an operation makes."""
        made = [n.meta.get("tensor_meta") for n in self.graph.graph.nodes if n.op == "call_function"]
        return [m.shape.numel() for m in made if hasattr(m, "shape")]

    @cached_property
    def elements(self) -> int:
        """Elements of all of these together."""
        return sum(self.sizes)

    def compile(self, inputs: Sequence[Tensor], cuda_graphs: bool = False, **options: Any) -> None:
        """Compile with inductor; random draws stay torch's own, so that seeds mean what they mean uncompiled.

        :param cuda_graphs: replay the kernels as one CUDA graph, where the inputs are on such a device.

        :raises CannotCapture: where inductor cannot, with its reason.
        """
        import torch._inductor

        self.replayed = cuda_graphs and any(t.is_cuda for t in (*inputs, *self.externals))
        if self.replayed:
            options["triton.cudagraphs"] = True

        # Outside of autograd: gradients are operations of the graph already.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inductor's remarks on its own fallbacks
            arguments: list[Any] = [t.detach() for t in (*inputs, *self.externals)]
            _ = self.sizes  # found from what is cleared here
            for node in self.graph.graph.nodes:
                node.meta.clear()
            try:
                self.compiled = torch._inductor.compile(self.graph, arguments, options={**_OPTIONS, **options})
            except Exception as error:  # a missing C++ compiler, an operation that it does not know
                raise CannotCapture(f"inductor cannot compile it: {_first_line(error)}") from error
        self.backend = "inductor"


#: Torch's own random numbers: the stream is that of the eager program, seed for seed.  Shapes are looked at by those
#: who call graphs, once and not for every tensor on the way.
_OPTIONS: dict[str, Any] = {"fallback_random": True, "size_asserts": False, "alignment_asserts": False}
_shape = operator.attrgetter("shape")


def is_recording() -> bool:
    """Whether the operations of a function are being recorded."""
    return get_proxy_mode() is not None


def record(fn: Function, inputs: Sequence[Tensor], known: Sequence[Tensor] = ()) -> StaticGraph:
    """Record the operations that ``fn`` does on inputs of these shapes.

    The random state is left as it was.  Tensors that ``fn`` writes in place are written.

    :param known: tensors from outside that ``fn`` is known to read, such as parameters.
    :raises CannotCapture: where the operations depend on values, or cannot be recorded.
    """
    graph, externals = _record_once(fn, inputs, known)
    if len(externals) > len(known):
        # Once more with all of them as inputs: a branch on the value of one is seen only then.
        graph, again = _record_once(fn, inputs, externals)
        if len(again) > len(externals):
            raise CannotCapture(
                "it makes tensors outside of torch on each run (from NumPy, say), which would be frozen"
            )
    return StaticGraph(graph, externals, graph, fn)


#: what torch's validation of values asks
_ALL_TRUE = getattr(torch, "_is_all_true", None)


class _WithoutValueChecks(TorchFunctionMode):
    """What torch computes after a look at values (is every class below the number of classes?), without the look."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.one_hot:
            tensor, classes = _one_hot_arguments(*args, **kwargs)
            if classes >= 0:
                ones = tensor.new_ones(()).expand(*tensor.shape, 1)
                return tensor.new_zeros(*tensor.shape, classes).scatter(-1, tensor.unsqueeze(-1), ones)
        if func is _ALL_TRUE:
            return True  # of validation, under a handler that hides the program from `_Unvalidated`
        if func in _READERS and _is_constant(args[0]):
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _Unvalidated(Messenger):
    """Takes validation from distributions that were made before it was turned off, a ``PyroSample``'s say."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = unvalidated(msg["fn"])


#: what gives Python the value of a tensor
_READERS = {getattr(Tensor, name) for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")}


def _is_constant(tensor: Tensor) -> bool:
    """Whether a tensor of a recording is the same on each call: the indices of a sequential plate, say."""
    mode = get_proxy_mode()
    slot = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return slot is not None and _depends_on_nothing(slot.proxy.node)


def _depends_on_nothing(node: fx.Node) -> bool:
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    return not written_to(node) and all(_depends_on_nothing(n) for n in node.all_input_nodes)


def written_to(node: fx.Node) -> bool:
    """Whether an operation writes in place to a node's tensor, or to a view of it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema is None:
            continue
        if schema.is_mutable or (any(r.alias_info is not None for r in schema.returns) and written_to(user)):
            return True
    return False


def _one_hot_arguments(tensor: Tensor, num_classes: int = -1) -> tuple[Tensor, int]:
    return tensor, num_classes


def _record_once(
    fn: Function, inputs: Sequence[Tensor], known: Sequence[Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    count = len(inputs)
    before = random.getstate(), _numpy_state()
    # Two inputs that are one tensor would become one input: each is given an alias of its own.
    aliases = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
    try:
        with fork_rng(), pyro.validation_enabled(False), _WithoutValueChecks(), _Unvalidated():
            graph = make_fx(lambda *flat: list(fn(*flat[:count])))(*aliases, *known)
    except Exception as error:
        raise CannotCapture(_explain(error)) from error
    if (random.getstate(), _numpy_state()) != before:
        raise CannotCapture("it draws from Python's or NumPy's random numbers, which a graph would freeze")
    return graph, [*known, *_lift(graph)]


def _lift(graph: fx.GraphModule) -> list[Tensor]:
    """Turn tensors that the graph holds into further inputs; numbers written in the program stay in it."""
    last = [n for n in graph.graph.nodes if n.op == "placeholder"]
    externals: dict[int, tuple[Tensor, fx.Node]] = {}
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        value: Any = graph
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            raise CannotCapture(f"it holds control flow ({type(value).__name__}) that is not one list of operations")
        if node.users and all(user.target is aten.lift_fresh_copy.default for user in node.users):
            continue
        if id(value) not in externals:
            with graph.graph.inserting_after(last[-1]) if last else graph.graph.inserting_before():
                placeholder = graph.graph.placeholder(f"external_{len(externals)}")
            last.append(placeholder)
            externals[id(value)] = (value, placeholder)
        node.replace_all_uses_with(externals[id(value)][1])
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return [value for value, _ in externals.values()]


def _numpy_state() -> tuple[Any, ...]:
    _, keys, position, *_ = tuple(np.random.get_state(legacy=True))
    return np.asarray(keys).tobytes(), position


def _explain(error: Exception) -> str:
    text = str(error)
    if "trying to get value out of a tracing tensor" in text or "data-dependent" in text:
        return "its structure depends on values of tensors (.item(), bool() or float() of a tensor)"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def agreement(expected: Sequence[Tensor], found: Sequence[Tensor], names: Sequence[str] | None = None) -> str:
    """Why two lists of results are not the same up to rounding; ``""`` if they are.

    Each tensor's distance is measured in its own norm, with a floor for those that are nearly zero beside the largest.
    """
    if len(expected) != len(found):
        return f"{len(found)} results instead of {len(expected)}"
    largest = max([float(t.detach().double().norm()) for t in expected if t.is_floating_point()], default=0.0)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        name = f"result {i}" if names is None else names[i]
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name} is {b.dtype} {tuple(b.shape)} instead of {a.dtype} {tuple(a.shape)}"
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return f"{name} differs"
            continue
        a, b = a.detach().double(), b.detach().double()
        both = torch.isfinite(a) & torch.isfinite(b)
        if not torch.equal(a[~both].nan_to_num(), b[~both].nan_to_num()):
            return f"{name} is not finite in other places"
        tolerance = 4 * torch.finfo(expected[i].dtype).eps ** 0.5
        distance, size = float((a - b)[both].norm()), float(a[both].norm())
        if distance > tolerance * max(size, 1e-3 * largest, 1e-30):
            return f"{name} differs by {distance:.3g} (its norm is {size:.3g})"
    return ""
