"""Arithmetic, comparisons and logic, element by element."""

from __future__ import annotations

from typing import Any

from pyro_dgm.interop.jaxlower.table import Rules, jax_dtype, overloads

__all__ = ["rules"]


def rules() -> Rules:
    """The rules of this file."""
    import jax.numpy as jnp
    from jax import lax

    def add(a: Any, b: Any, alpha: Any = 1) -> Any:
        return jnp.add(a, b if alpha == 1 else jnp.multiply(b, alpha))

    def sub(a: Any, b: Any, alpha: Any = 1) -> Any:
        return jnp.subtract(a, b if alpha == 1 else jnp.multiply(b, alpha))

    def rsub(a: Any, b: Any, alpha: Any = 1) -> Any:
        return sub(b, a, alpha)

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

    def fmod(a: Any, b: Any) -> Any:
        return jnp.fmod(a, b)

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

    def to_copy(x: Any, dtype: Any = None, **_: Any) -> Any:
        return x if dtype is None else jnp.asarray(x, jax_dtype(dtype))

    def lerp(a: Any, b: Any, weight: Any) -> Any:
        return a + weight * (b - a)

    import torch

    prims = torch.ops.prims
    table: Rules = {prims.convert_element_type.default: lambda x, dtype: jnp.asarray(x, jax_dtype(dtype))}
    for names, rule in (
        ("add.Tensor add.Scalar", add),
        ("sub.Tensor sub.Scalar", sub),
        ("rsub.Tensor rsub.Scalar", rsub),
        ("mul.Tensor mul.Scalar", jnp.multiply),
        ("div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode", div),
        ("floor_divide.default floor_divide.Scalar", jnp.floor_divide),
        ("pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar", power),
        ("remainder.Tensor remainder.Scalar remainder.Scalar_Tensor", jnp.remainder),
        ("fmod.Tensor fmod.Scalar", fmod),
        ("clamp.default clamp.Tensor", clamp),
        ("clamp_min.default clamp_min.Tensor", lambda x, low: clamp(x, low)),
        ("clamp_max.default clamp_max.Tensor", lambda x, high: clamp(x, None, high)),
        ("maximum.default fmax.default", jnp.maximum),
        ("minimum.default fmin.default", jnp.minimum),
        ("lerp.Tensor lerp.Scalar", lerp),
        ("_to_copy.default", to_copy),
        ("clone.default alias.default lift_fresh_copy.default lift_fresh.default lift.default", lambda x, **_: x),
        ("detach.default", lax.stop_gradient),
        ("copy.default", lambda into, x, *_, **__: jnp.broadcast_to(x, into.shape).astype(into.dtype)),
        ("fill.Scalar fill.Tensor", lambda x, value: jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)),
        ("where.self where.ScalarSelf where.ScalarOther where.Scalar", jnp.where),
        ("masked_fill.Scalar masked_fill.Tensor", lambda x, mask, value: jnp.where(mask, value, x)),
        ("eq.Tensor eq.Scalar", jnp.equal),
        ("ne.Tensor ne.Scalar", jnp.not_equal),
        ("lt.Tensor lt.Scalar", jnp.less),
        ("le.Tensor le.Scalar", jnp.less_equal),
        ("gt.Tensor gt.Scalar", jnp.greater),
        ("ge.Tensor ge.Scalar", jnp.greater_equal),
        ("logical_and.default", jnp.logical_and),
        ("logical_or.default", jnp.logical_or),
        ("logical_xor.default", jnp.logical_xor),
        ("logical_not.default", jnp.logical_not),
        ("bitwise_and.Tensor bitwise_and.Scalar", jnp.bitwise_and),
        ("bitwise_or.Tensor bitwise_or.Scalar", jnp.bitwise_or),
        ("bitwise_xor.Tensor bitwise_xor.Scalar", jnp.bitwise_xor),
        ("bitwise_not.default", jnp.bitwise_not),
        ("isnan.default", jnp.isnan),
        ("isinf.default", jnp.isinf),
        ("isfinite.default", jnp.isfinite),
        (
            "nan_to_num.default",
            lambda x, nan=None, posinf=None, neginf=None: jnp.nan_to_num(
                x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf
            ),
        ),
        ("abs.default", absolute),
        ("neg.default", jnp.negative),
        ("sign.default sgn.default", jnp.sign),
        ("reciprocal.default", jnp.reciprocal),
        ("sqrt.default", jnp.sqrt),
        ("rsqrt.default", lax.rsqrt),
        ("square.default", jnp.square),
        ("exp.default", jnp.exp),
        ("exp2.default", jnp.exp2),
        ("expm1.default", jnp.expm1),
        ("log.default", jnp.log),
        ("log1p.default", jnp.log1p),
        ("log2.default", jnp.log2),
        ("log10.default", jnp.log10),
        ("sin.default", jnp.sin),
        ("cos.default", jnp.cos),
        ("tan.default", jnp.tan),
        ("asin.default", jnp.arcsin),
        ("acos.default", jnp.arccos),
        ("atan.default", jnp.arctan),
        ("atan2.default", jnp.arctan2),
        ("sinh.default", jnp.sinh),
        ("cosh.default", jnp.cosh),
        ("tanh.default", jnp.tanh),
        ("asinh.default", jnp.arcsinh),
        ("acosh.default", jnp.arccosh),
        ("atanh.default", jnp.arctanh),
        ("hypot.default", jnp.hypot),
        ("floor.default", jnp.floor),
        ("ceil.default", jnp.ceil),
        ("trunc.default", jnp.trunc),
        ("round.default", jnp.round),
        ("logaddexp.default", jnp.logaddexp),
    ):
        table.update(overloads(names, rule))
    return table
