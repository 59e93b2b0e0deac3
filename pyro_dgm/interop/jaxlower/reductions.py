"""Sums, extremes, moments, cumulative operations and sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_dgm.interop.jaxlower.table import Rules, jax_dtype, table_of

__all__ = ["rules"]


def _axes(dim: Any) -> Any:
    """Torch's ``None``, ``()``, ``2`` or ``[1, 2]`` as NumPy's axis."""
    if dim is None or isinstance(dim, int):
        return dim
    return tuple(dim) or None


def rules() -> Rules:
    """The rules of this file."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def reduction(fn: Callable[..., Any]) -> Callable[..., Any]:
        def rule(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
            if dtype is not None:
                x = x.astype(jax_dtype(dtype))
            return fn(x, axis=_axes(dim), keepdims=keepdim) if jnp.ndim(x) else fn(x)

        return rule

    def variance(fn: Callable[..., Any]) -> Callable[..., Any]:
        def rule(x: Any, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Any:
            correction = 1 if correction is None else correction
            return fn(x, axis=_axes(dim), ddof=correction, keepdims=keepdim)

        return rule

    var, std, mean = variance(jnp.var), variance(jnp.std), reduction(jnp.mean)

    def with_mean(moment: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, dim=None, *, correction=1, keepdim=False: (
            moment(x, dim, correction=correction, keepdim=keepdim),
            mean(x, dim, keepdim),
        )

    def extreme(arg: Callable[..., Any]) -> Callable[..., Any]:
        def rule(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
            if jnp.ndim(x) == 0:
                return x, jnp.zeros((), int)
            index = arg(x, axis=dim, keepdims=True)
            value = jnp.take_along_axis(x, index, axis=dim)
            return (value, index) if keepdim else (jnp.squeeze(value, dim), jnp.squeeze(index, dim))

        return rule

    def arg_extreme(arg: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, dim=None, keepdim=False: arg(x, axis=dim, keepdims=keepdim)

    def cumulative(fn: Callable[..., Any]) -> Callable[..., Any]:
        def rule(x: Any, dim: int, *, dtype: Any = None) -> Any:
            x = x if dtype is None else x.astype(jax_dtype(dtype))
            x = x.astype(int) if x.dtype == bool else x
            return fn(x, axis=dim % x.ndim) if x.ndim else x

        return rule

    def sort(x: Any, dim: int = -1, descending: bool = False, **_: Any) -> tuple[Any, Any]:
        index = jnp.argsort(x, axis=dim, stable=True, descending=descending)
        return jnp.take_along_axis(x, index, axis=dim), index

    def top_k(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Any, Any]:
        values, index = sort(x, dim, descending=largest)
        return lax.slice_in_dim(values, 0, k, axis=dim), lax.slice_in_dim(index, 0, k, axis=dim)

    def kth_value(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
        values, index = (lax.slice_in_dim(v, k - 1, k, axis=dim) for v in sort(x, dim))
        return (values, index) if keepdim else (jnp.squeeze(values, dim), jnp.squeeze(index, dim))

    def median(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
        # Torch's is the lower of the two in the middle.
        return kth_value(x, (x.shape[dim] + 1) // 2, dim, keepdim)

    def norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        x, axis = (x if dtype is None else x.astype(jax_dtype(dtype))), _axes(dim)
        if ord == float("inf"):
            return jnp.max(jnp.abs(x), axis=axis, keepdims=keepdim)
        if ord == 1:
            return jnp.sum(jnp.abs(x), axis=axis, keepdims=keepdim)
        total = jnp.sum(jnp.abs(x) ** ord, axis=axis, keepdims=keepdim)
        # Torch's gradient of the norm at zero is zero.
        return jnp.where(total == 0, 0, jnp.where(total == 0, 1, total) ** (1 / ord))

    return table_of(
        ("sum.default sum.dim_IntList", reduction(jnp.sum)),
        ("prod.default prod.dim_int", reduction(jnp.prod)),
        ("mean.default mean.dim", mean),
        ("amax.default max.default", reduction(jnp.max)),
        ("amin.default min.default", reduction(jnp.min)),
        ("any.default any.dim any.dims", reduction(jnp.any)),
        ("all.default all.dim all.dims", reduction(jnp.all)),
        ("max.dim", extreme(jnp.argmax)),
        ("min.dim", extreme(jnp.argmin)),
        ("argmax.default", arg_extreme(jnp.argmax)),
        ("argmin.default", arg_extreme(jnp.argmin)),
        ("var.correction", var),
        ("std.correction", std),
        ("var_mean.correction", with_mean(var)),
        ("std_mean.correction", with_mean(std)),
        ("logsumexp.default", lambda x, dim, keepdim=False: jax.nn.logsumexp(x, axis=_axes(dim), keepdims=keepdim)),
        ("linalg_vector_norm.default", norm),
        ("_cdist_forward.default", lambda a, b, p, mode=None: norm(a[..., :, None, :] - b[..., None, :, :], p, -1)),
        ("cumsum.default", cumulative(jnp.cumsum)),
        ("cumprod.default", cumulative(jnp.cumprod)),
        ("logcumsumexp.default", cumulative(lax.cumlogsumexp)),
        ("sort.default", sort),
        ("sort.stable", lambda x, *, stable=None, dim=-1, descending=False: sort(x, dim, descending)),
        ("topk.default", top_k),
        ("kthvalue.default", kth_value),
        ("median.dim", median),
        ("median.default", lambda x: median(x.reshape(-1), 0)[0]),
    )
