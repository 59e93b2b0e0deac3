"""Products, factorisations and solves.

Torch's ``*_ex`` operations give an ``info`` that a check raises on; here a factorisation that fails gives NaN, which a
sampler rejects.
"""

from __future__ import annotations

from typing import Any

from pyro_dgm.interop.jaxlower.table import Rules, table_of

__all__ = ["rules"]


def rules() -> Rules:
    """The rules of this file."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def product(a: Any, b: Any) -> Any:
        return jnp.matmul(a, b, precision="highest")

    def add_product(x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        out = product(a, b) if alpha == 1 else alpha * product(a, b)
        return out if beta == 0 else out + (x if beta == 1 else beta * x)

    def cholesky(a: Any, *, upper: bool = False, check_errors: bool = False) -> tuple[Any, Any]:
        factor = jnp.linalg.cholesky(a)
        return (jnp.swapaxes(factor, -1, -2) if upper else factor), jnp.zeros(a.shape[:-2], "int32")

    def solve_triangular(
        a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False, transpose: bool = False
    ) -> Any:
        batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a = jnp.broadcast_to(a, (*batch, *a.shape[-2:]))
        b = jnp.broadcast_to(b, (*batch, *b.shape[-2:]))
        return lax.linalg.triangular_solve(
            a, b, left_side=left, lower=not upper, transpose_a=transpose, unit_diagonal=unitriangular
        )

    def old_triangular_solve(
        b: Any, a: Any, upper: bool = True, transpose: bool = False, unitriangular: bool = False
    ) -> tuple[Any, Any]:
        return solve_triangular(a, b, upper=upper, unitriangular=unitriangular, transpose=transpose), a

    def cholesky_solve(b: Any, factor: Any, upper: bool = False) -> Any:
        half = solve_triangular(factor, b, upper=upper, transpose=upper)
        return solve_triangular(factor, half, upper=upper, transpose=not upper)

    def cholesky_inverse(factor: Any, upper: bool = False) -> Any:
        return cholesky_solve(
            jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape), factor, upper
        )

    def info_of(a: Any) -> Any:
        return jnp.zeros(a.shape[:-2], "int32")

    def solve(a: Any, b: Any, *, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
        vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
        right = b[..., None] if vector else b
        out = (
            jnp.linalg.solve(a, right)
            if left
            else jnp.swapaxes(jnp.linalg.solve(jnp.swapaxes(a, -1, -2), jnp.swapaxes(right, -1, -2)), -1, -2)
        )
        return (out[..., 0] if vector else out), None, None, info_of(a)

    return table_of(
        ("mm.default bmm.default mv.default dot.default", product),
        ("addmm.default baddbmm.default addmv.default", add_product),
        ("linalg_cholesky_ex.default", cholesky),
        ("cholesky.default", lambda a, upper=False: cholesky(a, upper=upper)[0]),
        ("linalg_solve_triangular.default", solve_triangular),
        ("triangular_solve.default", old_triangular_solve),
        ("cholesky_solve.default", cholesky_solve),
        ("cholesky_inverse.default", cholesky_inverse),
        ("linalg_inv_ex.default", lambda a, **_: (jnp.linalg.inv(a), info_of(a))),
        ("_linalg_solve_ex.default", solve),
        ("_linalg_slogdet.default", lambda a: (*jnp.linalg.slogdet(a), None, None)),
        ("_linalg_det.default", lambda a: (jnp.linalg.det(a), None, None)),
        ("_linalg_eigh.default", lambda a, lower="L", compute_v=True: tuple(jnp.linalg.eigh(a, UPLO=lower))),
        (
            "_linalg_svd.default",
            lambda a, full_matrices=False, _=True, *, driver=None: tuple(jnp.linalg.svd(a, full_matrices)),
        ),
        ("linalg_qr.default", lambda a, mode="reduced": jnp.linalg.qr(a, mode=mode)),
        ("linalg_matrix_exp.default", jax.scipy.linalg.expm),
        ("linalg_cross.default", lambda a, b, *, dim=-1: jnp.cross(a, b, axis=dim)),
    )
