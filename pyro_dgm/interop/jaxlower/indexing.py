"""Reading and writing at indices that are tensors."""

from __future__ import annotations

from typing import Any

from pyro_dgm.interop.jaxlower.table import Rules, table_of

__all__ = ["rules"]


def rules() -> Rules:
    """The rules of this file."""
    import jax.numpy as jnp

    def at(indices: Any) -> tuple[Any, ...]:
        found = [slice(None) if i is None else i for i in indices]
        if any(not isinstance(i, slice) and i.dtype == "bool" for i in found):
            raise ValueError(
                "a boolean mask as an index makes a shape that depends on values: use torch.where, or "
                "mask.nonzero() of data outside the model"
            )
        return tuple(found)

    def index_put(x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
        if len(indices) == 1 and indices[0] is not None and indices[0].dtype == "bool" and jnp.ndim(values) == 0:
            mask = jnp.reshape(indices[0], indices[0].shape + (1,) * (x.ndim - indices[0].ndim))
            return jnp.where(mask, x + values if accumulate else values, x)
        spot = x.at[at(indices)]
        return spot.add(values) if accumulate else spot.set(values)

    def gather(x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Any:
        if x.ndim == 0:
            return jnp.broadcast_to(x, index.shape)
        # Torch reads index.shape out of x, whose other sizes may be larger.
        sizes = tuple(slice(None) if i == dim % x.ndim else slice(0, n) for i, n in enumerate(index.shape))
        return jnp.take_along_axis(x[sizes], index, axis=dim)

    def places(x: Any, dim: int, index: Any) -> tuple[Any, ...]:
        grid = list(jnp.meshgrid(*(jnp.arange(n) for n in index.shape), indexing="ij"))
        grid[dim] = index
        return tuple(grid)

    def corner(source: Any, index: Any) -> Any:
        if jnp.ndim(source) == 0:
            return source
        return source[tuple(slice(0, n) for n in index.shape)]

    def scatter_reduce(x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
        names = {"sum": "add", "prod": "multiply", "amax": "max", "amin": "min"}
        if not include_self or reduce not in names:
            raise ValueError(f"scatter_reduce with reduce={reduce!r}, include_self={include_self} has no rule")
        return getattr(x.at[places(x, dim, index)], names[reduce])(corner(source, index))

    def index_add(x: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
        where: list[Any] = [slice(None)] * x.ndim
        where[dim] = index
        return x.at[tuple(where)].add(source * alpha)

    def search_sorted(
        edges: Any, x: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
    ) -> Any:
        if edges.ndim != 1 or sorter is not None:
            raise ValueError("searchsorted has a rule for one sorted vector only")
        return jnp.searchsorted(edges, x, side="right" if right else side or "left")

    return table_of(
        ("index.Tensor", lambda x, indices: x[at(indices)]),
        ("index_put.default", index_put),
        ("gather.default", gather),
        ("index_select.default", lambda x, dim, index: jnp.take(x, index, axis=dim) if x.ndim else x),
        ("index_add.default", index_add),
        (
            "scatter.src scatter.value",
            lambda x, dim, index, source: x.at[places(x, dim, index)].set(corner(source, index)),
        ),
        ("scatter_add.default", lambda x, dim, index, source: x.at[places(x, dim, index)].add(corner(source, index))),
        ("scatter_reduce.two", scatter_reduce),
        ("embedding.default", lambda weight, index, *_, **__: weight[index]),
        ("searchsorted.Tensor searchsorted.Scalar", search_sorted),
        (
            "bucketize.Tensor bucketize.Scalar",
            lambda x, edges, *, out_int32=False, right=False: search_sorted(edges, x, right=right),
        ),
    )
