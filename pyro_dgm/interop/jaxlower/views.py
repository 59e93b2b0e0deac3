"""Shapes: what torch does as views of one storage, as functions of values."""

from __future__ import annotations

from typing import Any

from pyro_dgm.interop.jaxlower.table import Rules, table_of

__all__ = ["rules"]


def rules() -> Rules:
    """The rules of this file."""
    import jax.numpy as jnp
    from jax import lax

    def expand(x: Any, size: Any, *, implicit: bool = False) -> Any:
        lead = len(size) - x.ndim
        shape = [x.shape[i - lead] if n == -1 else n for i, n in enumerate(size)]
        return jnp.broadcast_to(x, shape)

    def squeeze(x: Any, dim: Any = None) -> Any:
        if dim is None:
            return jnp.squeeze(x)
        dims = [dim] if isinstance(dim, int) else dim
        axes = [d % x.ndim for d in dims] if x.ndim else []
        return jnp.squeeze(x, tuple(d for d in axes if x.shape[d] == 1))

    def select_scatter(x: Any, source: Any, dim: int, index: int) -> Any:
        where: list[Any] = [slice(None)] * x.ndim
        where[dim] = index
        return x.at[tuple(where)].set(source)

    def slice_scatter(
        x: Any, source: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
    ) -> Any:
        return x.at[_slice(x, dim, start, end, step)].set(source)

    def diagonal_scatter(x: Any, source: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
        moved = jnp.moveaxis(x, (dim1, dim2), (-2, -1))
        n = source.shape[-1]
        row = jnp.arange(n) + max(-offset, 0)
        moved = moved.at[..., row, jnp.arange(n) + max(offset, 0)].set(source)
        return jnp.moveaxis(moved, (-2, -1), (dim1, dim2))

    def diag_embed(x: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
        n = x.shape[-1] + abs(offset)
        out = jnp.zeros((*x.shape[:-1], n, n), x.dtype)
        row = jnp.arange(x.shape[-1]) + max(-offset, 0)
        out = out.at[..., row, jnp.arange(x.shape[-1]) + max(offset, 0)].set(x)
        return jnp.moveaxis(out, (-2, -1), (dim1, dim2))

    def split(x: Any, sizes: Any, dim: int = 0) -> Any:
        total = x.shape[dim]
        sizes = [min(sizes, total - a) for a in range(0, total, sizes)] if isinstance(sizes, int) else list(sizes)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return tuple(lax.slice_in_dim(x, e - n, e, axis=dim) for e, n in zip(ends, sizes, strict=True))

    def unbind(x: Any, dim: int = 0) -> Any:
        return tuple(lax.index_in_dim(x, i, axis=dim, keepdims=False) for i in range(x.shape[dim]))

    def unfold(x: Any, dim: int, size: int, step: int) -> Any:
        dim = dim % x.ndim
        starts = jnp.arange(0, x.shape[dim] - size + 1, step)
        out = jnp.take(x, starts[:, None] + jnp.arange(size), axis=dim)
        return jnp.moveaxis(out, dim + 1, -1)

    def pad(x: Any, widths: Any, value: Any = 0) -> Any:
        config = [(0, 0, 0)] * x.ndim
        for i in range(len(widths) // 2):
            config[x.ndim - 1 - i] = (widths[2 * i], widths[2 * i + 1], 0)
        return lax.pad(x, jnp.asarray(value, x.dtype), config)

    def cat(tensors: Any, dim: int = 0) -> Any:
        # Torch lets empty vectors stand among tensors of other ranks.
        kept = [x for x in tensors if x.shape != (0,)] or list(tensors[:1])
        return jnp.concatenate(kept, axis=dim)

    return table_of(
        (
            "view.default _unsafe_view.default reshape.default view_copy.default",
            lambda x, size: jnp.reshape(x, tuple(size)),
        ),
        ("expand.default", expand),
        ("permute.default", lambda x, dims: jnp.transpose(x, tuple(dims))),
        ("transpose.int", lambda x, a, b: jnp.swapaxes(x, a, b) if x.ndim else x),
        ("t.default", jnp.transpose),
        ("squeeze.default squeeze.dim squeeze.dims", squeeze),
        ("unsqueeze.default", lambda x, dim: jnp.expand_dims(x, dim)),
        ("select.int", lambda x, dim, index: lax.index_in_dim(x, index, axis=dim, keepdims=False)),
        ("slice.Tensor", lambda x, dim=0, start=None, end=None, step=1: x[_slice(x, dim, start, end, step)]),
        ("select_scatter.default", select_scatter),
        ("slice_scatter.default", slice_scatter),
        ("diagonal.default", lambda x, offset=0, dim1=0, dim2=1: jnp.diagonal(x, offset, dim1, dim2)),
        ("diagonal_scatter.default", diagonal_scatter),
        ("diag_embed.default", diag_embed),
        ("split.Tensor split_with_sizes.default", split),
        ("unbind.int", unbind),
        ("repeat.default", lambda x, repeats: jnp.tile(x, tuple(repeats))),
        ("unfold.default", unfold),
        ("flip.default", lambda x, dims: jnp.flip(x, tuple(dims))),
        ("roll.default", lambda x, shifts, dims=(): jnp.roll(x, tuple(shifts), tuple(dims) or None)),
        ("constant_pad_nd.default", pad),
        ("cat.default", cat),
        ("stack.default", lambda tensors, dim=0: jnp.stack(tensors, axis=dim)),
        ("tril.default", lambda x, diagonal=0: jnp.tril(x, diagonal)),
        ("triu.default", lambda x, diagonal=0: jnp.triu(x, diagonal)),
    )


def _slice(x: Any, dim: int, start: int | None, end: int | None, step: int) -> tuple[slice, ...]:
    where = [slice(None)] * x.ndim
    where[dim] = slice(start, end, step)
    return tuple(where)
