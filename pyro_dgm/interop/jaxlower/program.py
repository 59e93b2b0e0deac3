"""A functional ATen graph as a list of JAX calls."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_dgm.interop.jaxlower.callback import Spec, callback_rule
from pyro_dgm.interop.jaxlower.graph import CHECKS
from pyro_dgm.interop.jaxlower.loop import Loop
from pyro_dgm.interop.jaxlower.loops import find_loops
from pyro_dgm.interop.jaxlower.rules import lowerings
from pyro_dgm.interop.jaxlower.step import CannotConvert, Constant, Ref, Step, by_rows, value_of
from pyro_dgm.interop.jaxlower.table import Rule, jax_dtype

__all__ = ["CannotConvert", "Lowered", "Ref", "Step", "lower"]


class Lowered:
    """A pure function of JAX arrays, made of steps.

    It holds no tensor, is hashable, and equal to every other that does the same: JAX compiles it once (give it as a
    static argument), and weights and data that change are arguments.

    :ivar input_dtypes: of the inputs, in order.
    :ivar steps: the operations.
    :ivar outputs: which values are the results.

    Where the same steps follow each other many times, a loop of Python that was recorded, it runs them as
    ``jax.lax.scan``.
    """

    def __init__(
        self,
        input_dtypes: Sequence[torch.dtype],
        input_shapes: Sequence[tuple[int, ...]],
        steps: Sequence[Step],
        outputs: Sequence[Ref],
    ) -> None:
        self.input_dtypes, self.input_shapes = tuple(input_dtypes), tuple(input_shapes)
        self.steps, self.outputs = tuple(steps), tuple(outputs)
        self._rules = tuple(step.rule for step in self.steps)
        self._text = "\n".join([f"{self.input_dtypes}{self.input_shapes}{self.outputs}", *(s.text for s in self.steps)])
        self._hash = hash((self._text, self._rules))
        specs = list(zip(self.input_shapes, self.input_dtypes, strict=True))
        self._plan: list[int | Loop] | None = find_loops(specs, self.steps, self.outputs)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lowered) and self._text == other._text and self._rules == other._rules

    def __call__(self, *inputs: Any) -> list[Any]:
        """The results for inputs in torch's order."""
        env: list[Any] = list(self.cast(inputs))
        if self._plan is None:
            for step in self.steps:
                env.append(step(env))
            return [env[ref.index] for ref in self.outputs]
        first = len(env)
        moved: dict[tuple[int, int], Any] = {}
        env += [None] * len(self.steps)
        for part in self._plan:
            if isinstance(part, Loop):
                part(env)
            else:
                env[part] = by_rows(self.steps[part - first], env, moved)
        return [value_of(env[ref.index]) for ref in self.outputs]

    def cast(self, inputs: Sequence[Any]) -> list[Any]:
        """The inputs in the dtypes that were recorded."""
        import jax.numpy as jnp

        return [jnp.asarray(x, jax_dtype(dtype)) for x, dtype in zip(inputs, self.input_dtypes, strict=True)]

    @property
    def loops(self) -> list[tuple[int, int]]:
        """Of the loops that were found, how many steps a repetition has, and how many repetitions."""
        return [(len(part.steps), part.count) for part in self._plan or () if isinstance(part, Loop)]

    @property
    def callbacks(self) -> list[str]:
        """Operations that go back to torch at every call, each once."""
        return list(dict.fromkeys(s.name for s in self.steps if getattr(s.rule, "is_callback", False)))


def lower(graph: fx.GraphModule, on_missing: str = "error") -> Lowered:
    """The graph with a rule at each operation.

    :param graph: a functional ATen graph with recorded shapes (:func:`functional_graph`).
    :param on_missing: ``"error"``, or ``"callback"`` to have torch do what has no rule.
    :raises CannotConvert: naming the operations without a rule.
    """
    rules = lowerings()
    places: dict[fx.Node, Ref] = {}
    dtypes, shapes, steps = [], [], []
    missing: dict[str, int] = {}
    rule: Rule | None
    args: Any
    kwargs: Any
    outputs: list[Ref] = []
    # Inputs have the first numbers.
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            places[node] = Ref(len(places))
            value = node.meta["val"]
            dtypes.append(value.dtype)
            shapes.append(tuple(value.shape))
    for node in graph.graph.nodes:
        if node.op == "placeholder" or (node.op == "call_function" and _is_check(node)):
            continue
        if node.op == "output":
            outputs = [places[n] for n in pytree.tree_leaves(node.args)]
            continue
        if node.op == "get_attr":
            rule, args, kwargs = Constant(_attribute(graph, node.target)), (), {}
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), cast(Any, places.__getitem__))
            rule = _rule_of(node, rules, on_missing)
            if rule is None:
                missing[str(node.target)] = missing.get(str(node.target), 0) + 1
        value = node.meta.get("val")
        several = isinstance(value, (tuple, list))
        shape = None if several or value is None else tuple(value.shape)
        dtype = None if several or value is None else value.dtype
        places[node] = Ref(len(places))
        name = "constant" if node.op == "get_attr" else str(node.target)
        steps.append(Step(name, rule or _absent, args, kwargs, shape, dtype))
    if missing:
        raise CannotConvert(_explain(missing))
    return Lowered(dtypes, shapes, steps, outputs)


def _rule_of(node: fx.Node, rules: dict[Any, Rule], on_missing: str) -> Rule | None:
    if node.target is operator.getitem:
        return operator.getitem
    rule = rules.get(node.target)
    if rule is not None or on_missing != "callback" or _draws(node.target):
        return rule
    inputs = tuple(_spec(n) for n in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(n, fx.Node))
    value = node.meta["val"]
    several = isinstance(value, (tuple, list))
    results = tuple((tuple(v.shape), v.dtype) for v in (value if several else [value]))
    return callback_rule(node.target, inputs, results, several)


def _spec(node: fx.Node) -> Spec:
    return tuple(node.meta["val"].shape), node.meta["val"].dtype


def _draws(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _is_check(node: fx.Node) -> bool:
    return any(name in str(node.target) for name in CHECKS)


def _absent(*_: Any, **__: Any) -> Any:
    raise CannotConvert("an operation has no rule")


def _attribute(graph: fx.GraphModule, path: Any) -> Tensor:
    value: Any = graph
    for part in str(path).split("."):
        value = getattr(value, part)
    return value


def _explain(missing: dict[str, int]) -> str:
    names = ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in sorted(missing.items()))
    drawn = [name for name in missing if _draws(_find(name))]
    if drawn:
        return (
            f"the model draws random numbers outside its latent sites ({', '.join(sorted(drawn))}: dropout in training "
            "mode, torch.randn, or sites hidden by poutine.block), so it has no fixed density; call .eval(), or make "
            "the draw a site"
        )
    return (
        f"no rule brings {names} to JAX; on_missing='callback' has torch do it at every call, which is slow, or add a "
        "rule to pyro_dgm.interop.jaxlower.lowerings()"
    )


def _find(name: str) -> Any:
    found: Any = torch.ops
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        return None
    return found
