"""The inverse of an increasing function, where there is no closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["invert_in_bracket", "invert_increasing"]


def invert_increasing(
    function: Callable[[Tensor], Tensor],
    y: Tensor,
    *,
    width: float = 1.0,
    doublings: int = 40,
    bisections: int | None = None,
    derivative: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Solve :math:`f(x) = y` element by element, for a strictly increasing :math:`f` that is onto the real line.

    The bracket ``[-w, w]`` is doubled until it holds the root of every element, and halved until it is as small as the
    dtype can tell. The number of steps is fixed, so that the function can be recorded as a graph and run under
    ``vmap``. One step of Newton's method, with the derivative as a constant, gives the result the gradient of the
    inverse, :math:`\\mathrm{d}x = (\\mathrm{d}y - \\mathrm{d}_\\theta f) / f'(x)`.

    :param function: maps each element alone, any shape.
    :param y: values to invert.
    :param width: half the width of the first bracket.
    :param doublings: doublings of each side of the bracket; 40 reach from 1 to 1e12.
    :param bisections: halvings of the bracket; ``None`` takes 64 for float64 and 40 for smaller ones.
    :param derivative: :math:`f'`; ``None`` takes autograd's.
    :returns: the roots, of the shape of ``y``. Gradients pass to ``y`` and to what ``function`` depends on.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops.root_finding import invert_increasing
        >>> x = invert_increasing(lambda x: x**3 + x, torch.tensor([10.0], dtype=torch.float64))
        >>> round(x.item(), 6)
        2.0
    """
    halvings = bisections if bisections is not None else (64 if y.dtype == torch.float64 else 40)
    with torch.no_grad():
        low, high = torch.full_like(y, -width), torch.full_like(y, width)
        for _ in range(doublings):
            low = torch.where(function(low) > y, 2 * low, low)
            high = torch.where(function(high) < y, 2 * high, high)
        for _ in range(halvings):
            middle = low + (high - low) / 2
            below = function(middle) < y
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        root = low + (high - low) / 2
    if derivative is None:
        with torch.enable_grad():
            at = root.detach().requires_grad_()
            (slope,) = torch.autograd.grad(function(at).sum(), at)
    else:
        slope = derivative(root)
    return root - (function(root) - y) / slope.detach()


def invert_in_bracket(
    function: Callable[[Tensor], Tensor],
    with_slope: Callable[[Tensor], tuple[Tensor, Tensor]],
    y: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    bisections: int = 24,
    newton_steps: int | None = None,
) -> Tensor:
    """Solve :math:`f(x) = y` element by element, for a smooth increasing :math:`f` whose root is in a known bracket.

    The bracket is halved until Newton's method converges from its middle, then steps of that follow, kept within the
    bracket. It takes about half the evaluations of bisection alone. As with :func:`invert_increasing` the number of
    steps is fixed, and gradients are those of the inverse.

    :param function: gives :math:`f`, element by element.
    :param with_slope: gives :math:`f` and :math:`f' > 0`.
    :param y: values to invert.
    :param low: at or below the roots, of the shape of ``y``.
    :param high: at or above the roots.
    :param bisections: halvings of the bracket.
    :param newton_steps: steps of Newton's method after them; ``None`` takes 4 for float64 and 3 for smaller ones.
    :returns: the roots, of the shape of ``y``. Gradients pass to ``y`` and to what ``with_slope`` depends on.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops.root_finding import invert_in_bracket
        >>> y = torch.tensor([10.0], dtype=torch.float64)
        >>> end = torch.full_like(y, 5.0)
        >>> x = invert_in_bracket(lambda x: x**3 + x, lambda x: (x**3 + x, 3 * x**2 + 1), y, -end, end)
        >>> round(x.item(), 6)
        2.0
    """
    steps = newton_steps if newton_steps is not None else (4 if y.dtype == torch.float64 else 3)
    with torch.no_grad():
        for _ in range(bisections):
            middle = low + (high - low) / 2
            below = function(middle) < y
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        root = low + (high - low) / 2
        for _ in range(steps):
            value, slope = with_slope(root)
            root = torch.minimum(torch.maximum(root - (value - y) / slope, low), high)
    value, slope = with_slope(root)
    return root - (value - y) / slope.detach()
