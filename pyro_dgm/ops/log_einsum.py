"""Sums of products in log space, as a backend of opt_einsum that ``torch.func`` can transform.

Pyro's backend is an ``autograd.Function`` of the older kind, which ``vmap`` and ``grad`` refuse.
"""

from __future__ import annotations

import torch
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["LogSumRing", "einsum", "tensordot", "transpose"]


class LogSumRing(LogRing):
    """Pyro's ring of log-sum-exp and sum, on the operations below."""

    _backend = "pyro_dgm.ops.log_einsum"


def transpose(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Dimensions in another order."""
    return tensor.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    r"""As :func:`torch.einsum` of the exponentials, in logarithms: sums of log factors, log-sum-exp over the rest.

    Example::

        >>> a, b = torch.tensor([0.2, 0.8]), torch.tensor([[0.5, 0.5], [0.1, 0.9]])
        >>> einsum("a,ab->b", a.log(), b.log()).exp()
        tensor([0.1800, 0.8200])
    """
    left, output = equation.split("->")
    inputs = left.split(",")
    summed = sorted(set(left) - set(output) - {","})
    dims = output + "".join(summed)
    total: Tensor | None = None
    for names, operand in zip(inputs, operands, strict=True):
        order = [d for d in dims if d in names]
        aligned = operand.permute([names.index(d) for d in order])
        sizes = iter(aligned.shape)
        aligned = aligned.reshape([next(sizes) if d in names else 1 for d in dims])
        total = aligned if total is None else total + aligned
    assert total is not None
    return _log_sum_exp(total, list(range(len(output), len(dims)))) if summed else total.clone()


def _log_sum_exp(values: Tensor, dims: list[int]) -> Tensor:
    """Log-sum-exp; minus infinity, with gradient zero and not NaN, where all that is summed is impossible."""
    shift = values.detach().amax(dims, keepdim=True)
    shift = shift.clamp(min=torch.finfo(shift.dtype).min)
    total = (values - shift).exp().sum(dims)
    possible = total != 0  # true of NaN, which must come through
    logarithm = torch.where(possible, total, torch.ones_like(total)).log()
    shift = shift.reshape(total.shape)
    return torch.where(possible, logarithm + shift, torch.full_like(total, -torch.inf))


tensordot = Tensordot(einsum)
