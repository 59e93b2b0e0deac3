"""Layers: convolutions, pooling, normalisations and activations.  Resizing comes decomposed into other rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_dgm.interop.jaxlower.table import Rules, jax_dtype, table_of

__all__ = ["rules"]


def _each(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def rules() -> Rules:
    """The rules of this file."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def convolution(
        x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, out_pad: Any, groups: int
    ) -> Any:
        n = w.ndim - 2
        single = x.ndim == n + 1
        x = x[None] if single else x
        stride, padding, dilation = _each(stride, n), _each(padding, n), _each(dilation, n)
        space = range(2, 2 + n)
        if transposed:
            # (in, out / groups, ...) to (out, in / groups, ...), turned round: the adjoint of a convolution is one
            # of the image with zeros between its pixels.
            c_in, c_out = w.shape[0], w.shape[1]
            w = jnp.flip(w, tuple(space)).reshape(groups, c_in // groups, c_out, *w.shape[2:])
            w = jnp.swapaxes(w, 1, 2).reshape(groups * c_out, c_in // groups, *w.shape[3:])
            reach = [dilation[i] * (w.shape[2 + i] - 1) for i in range(n)]
            extra = _each(out_pad, n)
            pads = [(reach[i] - padding[i], reach[i] - padding[i] + extra[i]) for i in range(n)]
            strides, spread = (1,) * n, stride
        else:
            pads, strides, spread = [(p, p) for p in padding], stride, (1,) * n
        out = lax.conv_general_dilated(
            x,
            w,
            strides,
            pads,
            lhs_dilation=spread,
            rhs_dilation=dilation,
            feature_group_count=groups,
            precision="highest",
        )
        if b is not None:
            out = out + b.reshape(-1, *(1,) * n)
        return out[0] if single else out

    def windows(x: Any, size: Any, stride: Any, padding: Any, dilation: Any, n: int, ceil: bool) -> dict[str, Any]:
        lead = (1,) * (x.ndim - n)
        size = _each(size, n)
        stride = _each(stride, n) if stride not in (None, [], ()) else size
        padding, dilation = _each(padding, n), _each(dilation, n)
        pads = []
        for i in range(n):
            length, reach = x.shape[x.ndim - n + i], dilation[i] * (size[i] - 1) + 1
            high = padding[i]
            if ceil:
                span = length + 2 * padding[i] - reach
                count = -(-span // stride[i]) + 1
                if (count - 1) * stride[i] >= length + padding[i]:
                    count -= 1  # torch lets no window begin in the padding on the right
                high = max(0, (count - 1) * stride[i] + reach - length - padding[i])
            pads.append((padding[i], high))
        return {
            "window_dimensions": (*lead, *size),
            "window_strides": (*lead, *stride),
            "padding": [(0, 0)] * len(lead) + pads,
            "window_dilation": (*lead, *dilation),
        }

    def max_pool(
        x: Any, size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> tuple[Any, Any]:
        n = len(size)
        where = windows(x, size, stride, padding, dilation, n, ceil_mode)
        return lax.reduce_window(x, -jnp.inf, lax.max, **where), None

    def avg_pool(n: int) -> Any:
        def rule(
            x: Any,
            size: Any,
            stride: Any = (),
            padding: Any = 0,
            ceil_mode: bool = False,
            count_include_pad: bool = True,
            divisor_override: int | None = None,
        ) -> Any:
            where = windows(x, size, stride, padding, 1, n, ceil_mode)
            total = lax.reduce_window(x, 0.0, lax.add, **where)
            if divisor_override is not None:
                return total / divisor_override
            inside = jnp.ones(x.shape, x.dtype)
            if count_include_pad:
                # Padding that was asked for counts; what ceil_mode adds on the right does not.
                lead, p = x.ndim - n, _each(padding, n)
                inside = jnp.pad(inside, [(0, 0)] * lead + [(a, a) for a in p], constant_values=1)
                pads = [(0, 0)] * lead + [
                    (0, max(0, b[1] - a)) for a, b in zip(p, where["padding"][lead:], strict=True)
                ]
                where = {**where, "padding": pads}
            return total / lax.reduce_window(inside, 0.0, lax.add, **where)

        return rule

    def adaptive_avg_pool(x: Any, size: Any) -> Any:
        for i, out in enumerate(size):
            axis = x.ndim - len(size) + i
            n = x.shape[axis]
            parts = [
                jnp.mean(lax.slice_in_dim(x, a * n // out, -(-(a + 1) * n // out), axis=axis), axis, keepdims=True)
                for a in range(out)
            ]
            x = jnp.concatenate(parts, axis)
        return x

    def softplus(x: Any, beta: float = 1, threshold: float = 20) -> Any:
        large = x * beta > threshold
        return jnp.where(large, x, jnp.log1p(jnp.exp(jnp.where(large, 0, x) * beta)) / beta)

    def elu(x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Any:
        low = jnp.where(x > 0, 0, x)
        return jnp.where(x > 0, x * scale, alpha * scale * jnp.expm1(low * input_scale))

    def soft_max(fn: Any) -> Any:
        return lambda x, dim, to_float=False: fn(x, axis=dim) if x.ndim else fn(x[None], axis=0)[0]

    def soft_max_as(fn: Any) -> Any:
        return lambda x, dim, dtype=None: fn(x if dtype is None else x.astype(jax_dtype(dtype)), axis=dim)

    def scaled(out: Any, w: Any, b: Any, shape: Sequence[int]) -> Any:
        out = out if w is None else out * w.reshape(shape)
        return out if b is None else out + b.reshape(shape)

    def standardised(x: Any, axes: tuple[int, ...], eps: float) -> tuple[Any, Any, Any]:
        mean = jnp.mean(x, axes, keepdims=True)
        scale = lax.rsqrt(jnp.var(x, axes, keepdims=True) + eps)
        return (x - mean) * scale, mean, scale

    def layer_norm(x: Any, shape: Any, w: Any, b: Any, eps: float) -> tuple[Any, Any, Any]:
        out, mean, scale = standardised(x, tuple(range(x.ndim - len(shape), x.ndim)), eps)
        return scaled(out, w, b, tuple(shape)), mean, scale

    def group_norm(x: Any, w: Any, b: Any, n: int, c: int, size: int, groups: int, eps: float) -> tuple[Any, Any, Any]:
        out, mean, scale = standardised(x.reshape(n, groups, -1), (2,), eps)
        out = scaled(out.reshape(x.shape), w, b, (1, c, *(1,) * (x.ndim - 2)))
        return out, mean.reshape(n, groups), scale.reshape(n, groups)

    def batch_norm(
        x: Any, w: Any, b: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
    ) -> tuple[Any, Any, Any]:
        shape = (1, x.shape[1], *(1,) * (x.ndim - 2))
        if training:
            if mean is not None:
                raise ValueError("batch normalisation in training mode writes its running statistics: call .eval()")
            out, m, s = standardised(x, tuple(i for i in range(x.ndim) if i != 1), eps)
            return scaled(out, w, b, shape), m.ravel(), s.ravel()
        out = (x - mean.reshape(shape)) * lax.rsqrt(var.reshape(shape) + eps)
        return scaled(out, w, b, shape), mean[:0], mean[:0]

    return table_of(
        ("convolution.default", convolution),
        ("max_pool2d_with_indices.default max_pool3d_with_indices.default", max_pool),
        ("avg_pool1d.default", avg_pool(1)),
        ("avg_pool2d.default", avg_pool(2)),
        ("avg_pool3d.default", avg_pool(3)),
        ("_adaptive_avg_pool2d.default _adaptive_avg_pool3d.default adaptive_avg_pool1d.default", adaptive_avg_pool),
        ("native_layer_norm.default", layer_norm),
        ("native_group_norm.default", group_norm),
        ("native_batch_norm.default _native_batch_norm_legit_functional.default", batch_norm),
        (
            "_native_batch_norm_legit_no_training.default",
            lambda x, w, b, mean, var, *rest: batch_norm(x, w, b, mean, var, False, *rest),
        ),
        ("_native_batch_norm_legit.no_stats", lambda x, w, b, *rest: batch_norm(x, w, b, None, None, *rest)),
        ("relu.default", lambda x: jnp.where(x > 0, x, 0)),
        ("hardtanh.default", lambda x, low=-1, high=1: jnp.where(x < low, low, jnp.where(x > high, high, x))),
        ("leaky_relu.default", lambda x, slope=0.01: jnp.where(x > 0, x, x * slope)),
        ("elu.default", elu),
        ("gelu.default", lambda x, *, approximate="none": jax.nn.gelu(x, approximate=approximate == "tanh")),
        ("silu.default", jax.nn.silu),
        ("mish.default", lambda x: x * jnp.tanh(softplus(x))),
        ("softplus.default", softplus),
        ("_softmax.default", soft_max(jax.nn.softmax)),
        ("_log_softmax.default", soft_max(jax.nn.log_softmax)),
        ("softmax.int", soft_max_as(jax.nn.softmax)),
        ("log_softmax.int", soft_max_as(jax.nn.log_softmax)),
    )
