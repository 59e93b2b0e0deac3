"""Losses of torch's in forms with cheaper derivatives, put in place while a function is recorded."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["CheaperLosses"]


class CheaperLosses(TorchFunctionMode):
    r"""Losses in a form whose derivative is one operation on each element.

    The density of a Bernoulli with logits :math:`\ell` is :math:`y \ell - \log(1 + e^\ell)`, with derivative
    :math:`y - \sigma(\ell)`; torch writes it so that seven operations are left.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.binary_cross_entropy_with_logits and len(args) == 2:
            logits, target = args
            # Torch hands over its defaults too.
            plain = all(v is None for k, v in kwargs.items() if k != "reduction")
            if plain and kwargs.get("reduction") == "none" and logits.dtype == target.dtype:
                # Beyond 40 the two differ by less than a double resolves.
                return F.softplus(logits, threshold=40.0) - logits * target
        return func(*args, **kwargs)
