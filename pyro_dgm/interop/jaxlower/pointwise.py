"""Arithmetic, comparisons and logic, element by element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro_dgm.interop.jaxlower.table import Rule, Rules, jax_dtype, table_of

__all__ = ["rules"]


def rules() -> Rules:
    """The rules of this file."""
    import jax.numpy as jnp
    from jax import lax

    def add(a: Any, b: Any, alpha: Any = 1) -> Any:
        return jnp.add(a, b if alpha == 1 else jnp.multiply(b, alpha))

    def sub(a: Any, b: Any, alpha: Any = 1) -> Any:
        return jnp.subtract(a, b if alpha == 1 else jnp.multiply(b, alpha))

    def div(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
        if rounding_mode == "floor":
            return jnp.floor_divide(a, b)
        quotient = jnp.true_divide(a, b)
        return quotient if rounding_mode is None else jnp.trunc(quotient)

    def power(a: Any, b: Any) -> Any:
        if isinstance(b, (int, float)):
            if b == 0.5:
                return jnp.sqrt(a)
            if float(b).is_integer() and abs(b) <= 16:
                return jnp.power(a, int(b)) if b >= 0 else jnp.reciprocal(jnp.power(a, -int(b)))
        return jnp.power(a, b)

    def clamp(x: Any, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Any:
        # A maximum's gradient is shared between equals; torch gives all of it to x where it is at the bound.
        low, high = (min if low is None else low), (max if high is None else high)
        if low is not None:
            x = jnp.where(jnp.less(x, low), low, x)
        if high is not None:
            x = jnp.where(jnp.greater(x, high), high, x)
        return x

    def absolute(x: Any) -> Any:
        if jnp.iscomplexobj(x):
            square = x.real**2 + x.imag**2
            return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
        # JAX's derivative of |x| at zero is one, torch's is zero.
        return x * lax.stop_gradient(jnp.sign(x))

    def of_numpy(overloads: str, names: str) -> Iterator[tuple[str, Rule]]:
        """Functions of one meaning, ``torch=jax`` where their names differ."""
        for name in names.split():
            ours, _, theirs = name.partition("=")
            yield " ".join(f"{ours}.{o}" for o in overloads.split()), getattr(jnp, theirs or ours)

    import torch

    converts: Rules = {torch.ops.prims.convert_element_type.default: lambda x, dtype: jnp.asarray(x, jax_dtype(dtype))}
    return converts | table_of(
        *of_numpy(
            "default",
            "logical_and logical_or logical_xor logical_not bitwise_not isnan isinf isfinite neg=negative reciprocal "
            "sqrt square exp exp2 expm1 log log1p log2 log10 logaddexp sin cos tan asin=arcsin acos=arccos atan=arctan "
            "atan2=arctan2 sinh cosh tanh asinh=arcsinh acosh=arccosh atanh=arctanh hypot floor ceil trunc round",
        ),
        *of_numpy(
            "Tensor Scalar",
            "mul=multiply fmod eq=equal ne=not_equal lt=less le=less_equal gt=greater ge=greater_equal bitwise_and "
            "bitwise_or bitwise_xor",
        ),
        ("add.Tensor add.Scalar", add),
        ("sub.Tensor sub.Scalar", sub),
        ("rsub.Tensor rsub.Scalar", lambda a, b, alpha=1: sub(b, a, alpha)),
        ("div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode", div),
        ("floor_divide.default floor_divide.Scalar", jnp.floor_divide),
        ("pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar", power),
        ("remainder.Tensor remainder.Scalar remainder.Scalar_Tensor", jnp.remainder),
        ("clamp.default clamp.Tensor", clamp),
        ("clamp_min.default clamp_min.Tensor", lambda x, low: clamp(x, low)),
        ("clamp_max.default clamp_max.Tensor", lambda x, high: clamp(x, None, high)),
        ("maximum.default fmax.default", jnp.maximum),
        ("minimum.default fmin.default", jnp.minimum),
        ("lerp.Tensor lerp.Scalar", lambda a, b, weight: a + weight * (b - a)),
        ("_to_copy.default", lambda x, dtype=None, **_: x if dtype is None else jnp.asarray(x, jax_dtype(dtype))),
        ("clone.default alias.default lift_fresh_copy.default lift_fresh.default lift.default", lambda x, **_: x),
        ("detach.default", lax.stop_gradient),
        ("copy.default", lambda into, x, *_, **__: jnp.broadcast_to(x, into.shape).astype(into.dtype)),
        ("fill.Scalar fill.Tensor", lambda x, value: jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)),
        ("where.self where.ScalarSelf where.ScalarOther where.Scalar", jnp.where),
        ("masked_fill.Scalar masked_fill.Tensor", lambda x, mask, value: jnp.where(mask, value, x)),
        (
            "nan_to_num.default",
            lambda x, nan=None, posinf=None, neginf=None: jnp.nan_to_num(
                x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf
            ),
        ),
        ("abs.default", absolute),
        ("sign.default sgn.default", jnp.sign),
        ("rsqrt.default", lax.rsqrt),
    )
