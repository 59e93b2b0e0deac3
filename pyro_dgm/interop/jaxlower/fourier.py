"""Fourier transforms, and complex numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyro_dgm.interop.jaxlower.table import Rules, table_of

__all__ = ["rules"]


def rules() -> Rules:
    """Torch's transforms, whose scale is one of three: none, one over the root of the number of points, or over it."""
    import jax.numpy as jnp
    from jax import lax

    def scale(points: int, normalization: int) -> float:
        return {0: 1.0, 1: points**-0.5, 2: 1.0 / points}[normalization]

    def points_of(x: Any, dim: Sequence[int]) -> int:
        return math.prod(x.shape[d] for d in dim)

    def real_to_complex(x: Any, dim: Sequence[int], normalization: int, onesided: bool) -> Any:
        fn = jnp.fft.rfftn if onesided else jnp.fft.fftn
        return fn(x, axes=tuple(dim)) * scale(points_of(x, dim), normalization)

    def complex_to_real(x: Any, dim: Sequence[int], normalization: int, last: int) -> Any:
        sizes = [x.shape[d] for d in dim[:-1]] + [last]
        points = math.prod(sizes)
        return jnp.fft.irfftn(x, s=tuple(sizes), axes=tuple(dim)) * (points * scale(points, normalization))

    def complex_to_complex(x: Any, dim: Sequence[int], normalization: int, forward: bool) -> Any:
        points = points_of(x, dim)
        if forward:
            return jnp.fft.fftn(x, axes=tuple(dim)) * scale(points, normalization)
        return jnp.fft.ifftn(x, axes=tuple(dim)) * (points * scale(points, normalization))

    return table_of(
        ("_fft_r2c.default", real_to_complex),
        ("_fft_c2r.default", complex_to_real),
        ("_fft_c2c.default", complex_to_complex),
        ("view_as_real.default", lambda x: jnp.stack([x.real, x.imag], -1)),
        ("view_as_complex.default", lambda x: lax.complex(x[..., 0], x[..., 1])),
        ("complex.default", lax.complex),
        ("_conj.default conj_physical.default _conj_physical.default", jnp.conj),
        ("real.default", jnp.real),
        ("imag.default", jnp.imag),
        ("angle.default", jnp.angle),
        ("polar.default", lambda size, angle: lax.complex(size * jnp.cos(angle), size * jnp.sin(angle))),
    )
