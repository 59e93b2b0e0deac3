"""Precision of matrix products: float32, TF32, or bfloat16 with everything else in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["PRECISIONS", "check_precision", "matmul_precision", "mixed_precision"]

#: what ``fit(precision=...)`` takes, and what the run's header says of each
PRECISIONS = {"32": "float32 products", "tf32": "TF32 products", "bf16": "bfloat16 products"}

_NAMES = ("matmul", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm", "addmv")
#: products of matrices and convolutions: the work of a network, and what tensor cores do
_PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    [
        *(getattr(F, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)),
        *(F.linear, F.bilinear, F.scaled_dot_product_attention),
        *(getattr(torch, name) for name in ("einsum", *_NAMES)),
        *(getattr(Tensor, name) for name in ("matmul", "__matmul__", "__rmatmul__", *_NAMES[1:])),
    ]
)


class _HalfProducts(TorchFunctionMode):
    """Products of float32 tensors by way of bfloat16; their results are float32 again."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        args, kwargs = _cast(args), _cast(kwargs)
        result = func(*args, **kwargs)
        return result.float() if isinstance(result, Tensor) and result.dtype is torch.bfloat16 else result


def _cast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.bfloat16() if value.dtype is torch.float32 else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(v) for v in value)
    if isinstance(value, Mapping):
        return {k: _cast(v) for k, v in value.items()}
    return value


@contextmanager
def mixed_precision(enabled: bool = True) -> Iterator[None]:
    r"""Within it, matrix products and convolutions of float32 tensors are computed from bfloat16.

    A network's arithmetic then runs on tensor cores in half the memory traffic, while weights, latents and
    log-densities stay float32: unlike under :class:`torch.autocast`, what a layer gives is float32 again, so that no
    ``log_prob``, sum over data or logarithm of an average is ever rounded to the 8 bits of a bfloat16.  Of each product
    the relative error is near :math:`2^{-8}`.  Gradients are computed alike; bfloat16 has float32's range, and needs no
    loss scaling.  :func:`pyro_dgm.fit` does this with ``precision="bf16"``; the context is for loops of your own
    (``pyro.infer.SVI``), captured ones included: the first call records.

    Recurrent layers (``nn.LSTM``, ``nn.GRU``), float64 tensors and products with an ``out=`` are left as they are.

    :param enabled: ``False`` changes nothing.

    Source: P. Micikevicius et al. (2018), "Mixed precision training", arXiv:1710.03740; for bfloat16, D. Kalamkar et
    al. (2019), arXiv:1905.12322.

    Example::

        >>> import torch
        >>> from pyro_dgm.infer import mixed_precision
        >>> a, b = torch.full((1, 1), 1.001), torch.ones(1, 1)
        >>> with mixed_precision():
        ...     (a @ b).item(), (a @ b).dtype
        (1.0, torch.float32)
    """
    if not enabled:
        yield
        return
    with _HalfProducts():
        yield


def check_precision(precision: Any, parameters: Mapping[str, Tensor]) -> None:
    """:raises ValueError: for an unknown precision, or bfloat16 asked for where nothing is float32."""
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be None, {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if precision == "bf16" and not any(p.dtype is torch.float32 for p in parameters.values()):
        kinds = sorted({str(p.dtype) for p in parameters.values()})
        raise ValueError(
            f"precision='bf16' is for float32 parameters, got {', '.join(kinds)}: call .float(), or leave it out"
        )


@contextmanager
def matmul_precision(precision: str | None) -> Iterator[None]:
    """Torch's own switches for float32 products, ``"32"`` exact and ``"tf32"`` by TF32, put back at the end."""
    if precision is None:
        yield
        return
    tf32 = precision != "32"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
