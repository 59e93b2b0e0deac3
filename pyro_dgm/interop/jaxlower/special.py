"""Special functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_dgm.interop.jaxlower.table import Rules, table_of

__all__ = ["rules"]


def rules() -> Rules:
    """The rules of this file."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.scipy import special

    def mvlgamma(x: Any, p: int) -> Any:
        steps = jnp.arange(p, dtype=x.dtype) / 2
        return jnp.sum(lax.lgamma(x[..., None] - steps), -1) + p * (p - 1) / 4 * jnp.log(jnp.asarray(jnp.pi, x.dtype))

    def logit(x: Any, eps: float | None = None) -> Any:
        x = x if eps is None else jnp.clip(x, eps, 1 - eps)
        return jnp.log(x / (1 - x))

    def alike(fn: Callable[..., Any]) -> Callable[..., Any]:
        """For functions of two arrays that JAX wants of one shape and type."""

        def rule(a: Any, b: Any) -> Any:
            dtype = jnp.result_type(a, b)
            return fn(*jnp.broadcast_arrays(jnp.asarray(a, dtype), jnp.asarray(b, dtype)))

        return rule

    return table_of(
        ("lgamma.default", lax.lgamma),
        ("digamma.default special_digamma.default", lax.digamma),
        (
            "polygamma.default special_polygamma.default",
            lambda n, x: lax.digamma(x) if n == 0 else special.polygamma(n, x),
        ),
        ("mvlgamma.default special_multigammaln.default", mvlgamma),
        ("erf.default", lax.erf),
        ("erfc.default", lax.erfc),
        ("erfinv.default", lax.erf_inv),
        ("special_ndtri.default", special.ndtri),
        ("special_log_ndtr.default", special.log_ndtr),
        ("special_ndtr.default", special.ndtr),
        ("i0.default special_i0.default", special.i0),
        ("special_i0e.default", special.i0e),
        ("special_i1.default", special.i1),
        ("special_i1e.default", special.i1e),
        ("special_zeta.default", alike(special.zeta)),
        ("special_entr.default", special.entr),
        ("igamma.default special_gammainc.default", alike(lax.igamma)),
        ("igammac.default special_gammaincc.default", alike(lax.igammac)),
        ("xlogy.Tensor xlogy.Scalar_Self xlogy.Scalar_Other", special.xlogy),
        ("special_xlog1py.default", special.xlog1py),
        ("special_xlog1py.self_scalar special_xlog1py.other_scalar", special.xlog1py),
        ("logit.default special_logit.default", logit),
        ("sinc.default", jnp.sinc),
        ("sigmoid.default", jax.nn.sigmoid),
        ("log_sigmoid_forward.default", lambda x: (jax.nn.log_sigmoid(x), x)),
    )
