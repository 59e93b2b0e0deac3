"""Whether a JAX function is the torch function that it was made from, and if not, which operation is at fault."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.interop.jaxlower.program import Lowered, Step
from pyro_dgm.interop.jaxlower.step import mapped

if TYPE_CHECKING:
    from pyro_dgm.interop.jax_density import JaxDensity

__all__ = ["differences", "explain_mismatch", "jitted_value_and_grad"]

#: it runs a few times: less time to compile is worth more than speed
_QUICKLY = {"xla_backend_optimization_level": 0}

ValueAndGrad = tuple[Tensor, Position]


@functools.cache
def jitted_value_and_grad() -> Any:
    """``(lowered, number of latents, inputs)`` to the value and its gradient with respect to the latents.

    Compiled once for each program, not for each density: weights and data are arguments.
    """
    import jax

    def evaluate(lowered: Lowered, count: int, inputs: Sequence[Any]) -> Any:
        def value(latents: Sequence[Any]) -> Any:
            return lowered(*latents, *inputs[count:])[0]

        return jax.value_and_grad(value)(list(inputs[:count]))

    return jax.jit(evaluate, static_argnums=(0, 1), compiler_options=_QUICKLY)


def differences(expected: ValueAndGrad, found: ValueAndGrad) -> dict[str, float]:
    """Relative differences of the value, and of each latent's gradient in its norm.

    A gradient that is small beside the largest one is measured at a thousandth of that.
    """
    out = {"the log-density": _relative(expected[0], found[0], 1.0)}
    largest = max(float(g.double().norm()) for g in expected[1].values())
    for name, gradient in expected[1].items():
        out[f"the gradient of {name!r}"] = _relative(gradient, found[1][name], 1e-3 * largest)
    return out


def _relative(a: Tensor, b: Tensor, floor: float) -> float:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm()) / max(float(a.norm()), floor, 1e-30)


def explain_mismatch(density: JaxDensity, position: Position, tolerance: float) -> str:
    """The operation whose result, or else whose vector-Jacobian product, differs most from torch's on torch's inputs.

    :param tolerance: relative differences up to this are rounding.
    """
    graph, lowered = density.graph, density.lowered
    walk = _Walk(graph)
    tensors = [*position.values(), *density.externals.values()]
    with torch.no_grad(), density.precision():
        walk.run(*(t.detach() for t in tensors))
        nodes = [n for n in graph.graph.nodes if n.op not in ("placeholder", "output")]
        pairs = [p for p in zip(nodes, lowered.steps, strict=True) if isinstance(p[0].target, torch._ops.OpOverload)]
        for what, measure in (("result", _value_difference), ("gradient", _gradient_difference)):
            sizes = [measure(node, step, walk.values) for node, step in pairs]
            worst = max(range(len(sizes)), key=sizes.__getitem__)
            if not sizes[worst] <= tolerance:
                node = pairs[worst][0]
                shapes = [tuple(walk.values[n].shape) for n in _tensor_nodes(node, walk.values)]
                return f"the rule of {node.target}, on {shapes}, has another {what} (by {sizes[worst]:.2g})"
    return (
        "each operation agrees by itself, so either rounding adds up, or torch's gradient is not that of its "
        "operations (torch.no_grad, a custom backward)"
    )


class _Walk(fx.Interpreter):
    """Run a graph and keep all values."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op != "output":
            self.values[n] = out
        return out


def _tensor_nodes(node: fx.Node, values: dict[fx.Node, Any]) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(values[n], Tensor)]


def _value_difference(node: fx.Node, step: Step, values: dict[fx.Node, Any]) -> float:
    theirs = _as_list(_call_jax(step, node, {n: _to_jax(v) for n, v in values.items() if n in node.all_input_nodes}))
    return _worst(_as_list(values[node]), theirs)


def _gradient_difference(node: fx.Node, step: Step, values: dict[fx.Node, Any]) -> float:
    import jax

    wanted = [n for n in _tensor_nodes(node, values) if values[n].is_floating_point()]
    if not wanted or not any(isinstance(o, Tensor) and o.is_floating_point() for o in _as_list(values[node])):
        return 0.0
    with torch.enable_grad():
        leaves = {n: values[n].detach().clone().requires_grad_() for n in wanted}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: leaves.get(n, values[n]))
        out = next((o for o in _as_list(cast(Any, node.target)(*args, **kwargs)) if o.requires_grad), None)
        if out is None:
            return 0.0
        cotangent = torch.linspace(0.5, 1.5, max(out.numel(), 1), dtype=out.dtype)[: out.numel()].reshape(out.shape)
        ours = torch.autograd.grad(out, list(leaves.values()), cotangent, materialize_grads=True, allow_unused=True)
    fixed = {n: _to_jax(values[n]) for n in node.all_input_nodes if n not in leaves}

    def call(floats: list[Any]) -> Any:
        results = _as_list(_call_jax(step, node, {**fixed, **dict(zip(leaves, floats, strict=True))}))
        return results[0]

    _, pullback = jax.vjp(call, [_to_jax(values[n]) for n in wanted])
    (theirs,) = pullback(_to_jax(cotangent))
    # Of a triangular factor torch may give the half that is zero a gradient, which nothing reads.
    read = [_read_part(leaf) for leaf in leaves.values()]
    return _worst(
        [g * m for g, m in zip(ours, read, strict=True)],
        [np.asarray(g) * m.numpy() for g, m in zip(theirs, read, strict=True)],
    )


def _read_part(x: Tensor) -> Tensor:
    ones = torch.ones_like(x)
    if x.dim() >= 2 and x.shape[-1] == x.shape[-2]:
        for half in (torch.tril, torch.triu):
            if torch.equal(half(x), x):
                return half(ones)
    return ones


def _call_jax(step: Step, node: fx.Node, inputs: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), inputs.__getitem__)
    plain_args, plain_kwargs = mapped((args, kwargs), lambda ref: ref)  # plain lists, as rules have them
    return step.rule(*plain_args, **plain_kwargs)


def _to_jax(value: Any) -> Any:
    import jax.numpy as jnp

    return pytree.tree_map_only(Tensor, lambda t: jnp.asarray(t.detach().cpu().numpy()), value)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _worst(expected: Sequence[Any], found: Sequence[Any]) -> float:
    sizes = [0.0]
    for a, b in zip(expected, found, strict=False):
        if isinstance(a, Tensor) and a.is_floating_point() and b is not None and a.shape == np.shape(b):
            finite = torch.isfinite(a)
            b = torch.from_numpy(np.array(b, np.float64))
            sizes.append(_relative(a[finite], b[finite], 1e-3))
    return max(sizes)
