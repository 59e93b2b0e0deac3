"""Binary vectors: sums over all of a length, in chunks, and draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["MAX_ENUMERATED", "binary_states", "draw_binary", "draw_enumerated", "log_sum_over_binary"]

#: longest binary vectors that are enumerated: a million of them
MAX_ENUMERATED = 20


def binary_states(length: int, chunk_size: int = 2**14, like: Tensor | None = None) -> Iterator[Tensor]:
    """All binary vectors of a length, ``(rows, length)`` at a time.

    :param length: at most 20.
    :param chunk_size: rows at a time.
    :param like: a tensor whose dtype and device they take.
    :raises ValueError: for a length outside 0 to 20.

    Example::

        >>> from pyro_dgm.ops import binary_states
        >>> next(binary_states(2)).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    if not 0 <= length <= MAX_ENUMERATED:
        raise ValueError(f"length must be from 0 to {MAX_ENUMERATED} to enumerate 2**length states, got {length}")
    like = torch.empty(0) if like is None else like
    bits = torch.arange(length, device=like.device)
    for start in range(0, 2**length, chunk_size):
        index = torch.arange(start, min(start + chunk_size, 2**length), device=like.device)
        yield (index[:, None] >> bits & 1).to(like.dtype)


def log_sum_over_binary(
    log_f: Callable[[Tensor], Tensor], length: int, like: Tensor, chunk_size: int = 2**14
) -> Tensor:
    r""":math:`\log \sum_{h \in \{0, 1\}^n} f(h)`, a scalar.

    :param log_f: from ``(rows, length)`` to ``(rows,)``.
    :param length: n, at most 20.
    :param like: a tensor whose dtype and device the vectors take.
    :param chunk_size: rows at a time.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import log_sum_over_binary
        >>> round(float(log_sum_over_binary(lambda h: h.sum(-1), 3, torch.empty(0))), 4)  # 3 log(1 + e)
        3.9398
    """
    parts = [torch.logsumexp(log_f(h), 0) for h in binary_states(length, chunk_size, like)]
    return torch.logsumexp(torch.stack(parts), 0)


def draw_enumerated(
    log_f: Callable[[Tensor], Tensor], length: int, num_samples: int, like: Tensor, chunk_size: int = 2**14
) -> Tensor:
    r"""Exact, independent draws of binary vectors with :math:`p(h) \propto f(h)`, ``(num_samples, length)``.

    :param log_f: from ``(rows, length)`` to ``(rows,)``.
    :param length: at most 20.
    :param num_samples: how many.
    :param like: a tensor whose dtype and device the vectors take.
    :param chunk_size: rows at a time.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops.binary import draw_enumerated
        >>> draw_enumerated(lambda h: 100 * h.sum(-1), 3, 2, torch.empty(0)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    table = torch.cat([log_f(h) for h in binary_states(length, chunk_size, like)])
    index = torch.multinomial((table - table.max()).exp(), num_samples, replacement=True)
    return (index[:, None] >> torch.arange(length, device=index.device) & 1).to(like.dtype)


def draw_binary(logits: Tensor) -> Tensor:
    r"""Independent draws in {0, 1} with :math:`p(1) = \sigma(\mathrm{logits})`, in the dtype of the log-odds.

    For samplers: no gradient passes.  A uniform number is compared with the probability in its own memory, which is
    quicker on a CPU than :func:`torch.bernoulli`.

    :param logits: log-odds of one, of any shape.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops.binary import draw_binary
        >>> draw_binary(torch.tensor([-50.0, 50.0])).tolist()
        [0.0, 1.0]
    """
    chance = logits.detach().sigmoid()
    return torch.rand_like(chance).lt_(chance)
