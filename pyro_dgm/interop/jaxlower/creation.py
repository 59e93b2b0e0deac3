"""Tensors made from numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyro_dgm.interop.jaxlower.table import Rules, jax_dtype, table_of

__all__ = ["rules"]


def rules() -> Rules:
    """The rules of this file."""
    import jax.numpy as jnp

    def kind(dtype: Any) -> Any:
        return jax_dtype(torch.get_default_dtype() if dtype is None else dtype)

    def arange(*bounds: Any, dtype: Any = None, **_: Any) -> Any:
        if dtype is None:
            dtype = torch.int64 if all(isinstance(b, int) for b in bounds) else torch.get_default_dtype()
        return jnp.arange(*bounds).astype(jax_dtype(dtype))

    def filled(value: Any) -> Any:
        return lambda size, *, dtype=None, **_: jnp.full(tuple(size), value, kind(dtype))

    def filled_like(value: Any) -> Any:
        def rule(x: Any, *, dtype: Any = None, **_: Any) -> Any:
            return jnp.full(x.shape, value, x.dtype if dtype is None else jax_dtype(dtype))

        return rule

    def new_filled(value: Any) -> Any:
        def rule(x: Any, size: Any, *, dtype: Any = None, **_: Any) -> Any:
            return jnp.full(tuple(size), value, x.dtype if dtype is None else jax_dtype(dtype))

        return rule

    def linspace(start: Any, end: Any, steps: int, *, dtype: Any = None, **_: Any) -> Any:
        # From both ends, as torch rounds it.
        made = kind(dtype)
        i = np.arange(steps)
        a, b = made.type(start), made.type(end)
        step = (b - a) / made.type(max(steps - 1, 1))
        up, down = a + step * i.astype(made), b - step * (steps - 1 - i).astype(made)
        return jnp.asarray(np.where(i < steps // 2 if steps > 1 else i == 0, up, down), made)

    def indices(fn: Any) -> Any:
        return lambda row, col, offset=0, **_: jnp.stack(fn(row, offset, col))

    return table_of(
        ("arange.default arange.start arange.start_step", arange),
        # An empty tensor's numbers are whatever they are; zeros are as good.
        ("zeros.default empty.memory_format", filled(0)),
        ("ones.default", filled(1)),
        ("zeros_like.default empty_like.default", filled_like(0)),
        ("ones_like.default", filled_like(1)),
        ("new_zeros.default new_empty.default", new_filled(0)),
        ("new_ones.default", new_filled(1)),
        (
            "full.default",
            lambda size, value, *, dtype=None, **_: jnp.full(tuple(size), value, dtype and jax_dtype(dtype)),
        ),
        ("full_like.default", lambda x, value, **o: filled_like(value)(x, dtype=o.get("dtype"))),
        ("new_full.default", lambda x, size, value, **o: new_filled(value)(x, size, dtype=o.get("dtype"))),
        ("scalar_tensor.default", lambda value, *, dtype=None, **_: jnp.asarray(value, kind(dtype))),
        ("eye.default", lambda n, *, dtype=None, **_: jnp.eye(n, dtype=kind(dtype))),
        ("eye.m", lambda n, m, *, dtype=None, **_: jnp.eye(n, m, dtype=kind(dtype))),
        ("linspace.default", linspace),
        ("tril_indices.default", indices(jnp.tril_indices)),
        ("triu_indices.default", indices(jnp.triu_indices)),
    )
