"""Operations without a rule: torch does them, called back by JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_dgm.interop.jaxlower.table import jax_dtype

__all__ = ["Spec", "callback_rule"]

#: shape and dtype of a tensor
Spec = tuple[tuple[int, ...], torch.dtype]


@functools.cache
def callback_rule(op: Any, inputs: tuple[Spec, ...], results: tuple[Spec, ...], several: bool) -> Callable[..., Any]:
    """A rule that has torch do ``op``, and its vector-Jacobian product, on the host at every call.

    Right, and slow: values leave XLA and come back, one chain after another, and nothing is fused.  Gradients of
    gradients are not to be had.

    :param op: a pure operation.
    :param inputs: of its tensor arguments, in order.
    :param results: of what it gives.
    :param several: whether that is a tuple.
    """

    def rule(*args: Any, **kwargs: Any) -> Any:
        import jax
        import jax.numpy as jnp

        leaves, tree = pytree.tree_flatten((args, kwargs))
        spots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            filled = list(leaves)
            for i, tensor in zip(spots, tensors, strict=True):
                filled[i] = tensor
            a, k = pytree.tree_unflatten(filled, tree)
            out = op(*a, **k)
            return list(out) if several else [out]

        def forward_on_host(*arrays: Any) -> list[Any]:
            with torch.no_grad():
                outs = run(_tensors(arrays, inputs))
            return [_array(out, spec) for out, spec in zip(outs, results, strict=True)]

        def backward_on_host(arrays: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
            with torch.enable_grad():
                tensors = _tensors(arrays, inputs)
                wanted = [t.requires_grad_() for t in tensors if t.is_floating_point()]
                given = _tensors(cotangents, results)
                outs = [(o, c) for o, c in zip(run(tensors), given, strict=True) if o.requires_grad]
                grads = torch.autograd.grad(
                    [o for o, _ in outs], wanted, [c for _, c in outs], allow_unused=True, materialize_grads=True
                )
            return [_array(g, spec) for g, spec in zip(grads, floating, strict=True)]

        floating = [spec for spec in inputs if spec[1].is_floating_point]

        @jax.custom_vjp
        def call(*arrays: Any) -> Any:
            like = [jax.ShapeDtypeStruct(shape, jax_dtype(dtype)) for shape, dtype in results]
            return tuple(jax.pure_callback(forward_on_host, like, *arrays, vmap_method="sequential"))

        def forward(*arrays: Any) -> Any:
            return call(*arrays), arrays

        def backward(arrays: Any, cotangents: Any) -> Any:
            like = [jax.ShapeDtypeStruct(shape, jax_dtype(dtype)) for shape, dtype in floating]
            plain = tuple(
                c if dtype.is_floating_point else jnp.zeros(shape, jax_dtype(dtype))
                for c, (shape, dtype) in zip(cotangents, results, strict=True)
            )
            found = iter(jax.pure_callback(backward_on_host, like, arrays, plain, vmap_method="sequential"))
            # The tangent of what has no gradient has a type of its own.
            return tuple(
                next(found) if dtype.is_floating_point else np.zeros(shape, jax.dtypes.float0)
                for shape, dtype in inputs
            )

        call.defvjp(forward, backward)
        out = call(*(leaves[i] for i in spots))
        return out if several else out[0]

    rule.is_callback = True  # type: ignore[attr-defined]
    return rule


def _tensors(arrays: Sequence[Any], specs: Sequence[Spec]) -> list[Tensor]:
    return [torch.from_numpy(np.array(a)).to(dtype) for a, (_, dtype) in zip(arrays, specs, strict=True)]


def _array(tensor: Tensor, spec: Spec) -> Any:
    return np.asarray(tensor.detach().contiguous().numpy(), jax_dtype(spec[1]))
