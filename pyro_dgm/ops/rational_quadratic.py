"""Monotonic rational-quadratic splines: value and log-derivative in one pass, both directions."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional

__all__ = ["rational_quadratic"]


def rational_quadratic(
    value: Tensor,
    parameters: Tensor,
    num_bins: int,
    *,
    bound: float = 5.0,
    inverse: bool = False,
    circular: bool = False,
    min_size: float = 1e-3,
    min_slope: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """A monotonic rational-quadratic spline of each element, and the logarithm of its derivative.

    The spline maps ``[-bound, bound]`` onto itself; elsewhere it is the identity. In the bin from
    :math:`(x_k, y_k)` to :math:`(x_k + w, y_k + h)`, with slopes :math:`d_0` and :math:`d_1` at its ends,
    :math:`s = h / w`, :math:`\\xi = (x - x_k) / w` and :math:`\\eta = 1 - \\xi`,

    .. math:: \\frac{y - y_k}{h} = \\frac{\\xi (s \\xi + d_0 \\eta)}{s (\\xi^2 + \\eta^2) + (d_0 + d_1) \\xi \\eta}.

    With :math:`t = (y - y_k) / h`, :math:`u = 1 - t` and :math:`q = d_0 u - d_1 t`, the discriminant of the inverse is
    :math:`q^2 + 4 s^2 t u`, a sum of positive terms, and the root is taken in the form that does not cancel.

    Parameters of zero give the identity. There is no branch on values and no masked selection.

    :param value: elements of any shape.
    :param parameters: real numbers, ``value.shape + (3 * num_bins - 1,)`` or a shape that broadcasts to it: logits of
        the widths, logits of the heights, and slopes at the inner knots before they are made positive. Where
        ``circular``, ``3 * num_bins``: the slope at both ends comes first.
    :param num_bins: number of bins.
    :param bound: half the width of the interval.
    :param inverse: whether to apply the inverse.
    :param circular: whether both ends have one learned slope, in place of the slope 1 of the tails.
    :param min_size: least width and height of a bin, as a fraction of the interval.
    :param min_slope: least slope at a knot.
    :returns: values and log-derivatives, of the shape of ``value``.
    :raises ValueError: if the number of parameters does not fit, or the least sizes leave no room.

    Source: Durkan, Bekasov, Murray, Papamakarios (2019), arXiv:1906.04032.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops.rational_quadratic import rational_quadratic
        >>> y, log_slope = rational_quadratic(torch.tensor([0.0, 9.0]), torch.zeros(2, 11), 4)
        >>> y.tolist()
        [0.0, 9.0]
    """
    wanted = 3 * num_bins - (0 if circular else 1)
    if parameters.shape[-1] != wanted:
        raise ValueError(
            f"parameters must have {wanted} numbers in its last dimension for num_bins={num_bins}, "
            f"got the shape {tuple(parameters.shape)}"
        )
    if not 0 <= min_size * num_bins < 1:
        raise ValueError(f"min_size must lie in [0, 1 / num_bins) = [0, {1 / num_bins:.3g}), got {min_size}")
    # Bins come first: sums over them then run along memory, and write out to one loop in a recorded graph.
    shape = (wanted, *(1,) * (value.dim() + 1 - parameters.dim()), *parameters.shape[:-1])
    logits, raw = parameters.movedim(-1, 0).reshape(shape).contiguous().split((2 * num_bins, wanted - 2 * num_bins))
    # Widths and heights together, as fractions of the interval less the least sizes.
    fractions = _softmax(logits.unflatten(0, (2, num_bins)))
    room, least = 2 * bound * (1 - min_size * num_bins), 2 * bound * min_size
    inner = value.clamp(-bound, bound)
    lower, here = _bin_of(inner, fractions.detach()[1 if inverse else 0], room, least, bound)
    size = _total(fractions * here, 1) * room + least
    start = _total(fractions * lower, 1) * room + (_total(lower, 0) * least - bound)
    # Zero gives slope 1, as in the tails, whose parameters are the zeros of the sums at both ends.
    if circular:
        ends = torch.stack([_total(raw * here, 0), _total(raw * here.roll(1, 0), 0)])
    else:
        ends = torch.stack([_total(raw * here[1:], 0), _total(raw * here[:-1], 0)])
    first, last = (min_slope + functional.softplus(ends + math.log(math.expm1(1 - min_slope)))).unbind()
    (width, height), (left, bottom) = size.unbind(), start.unbind()
    mean = height / width
    excess = first + last - 2 * mean
    if inverse:
        t = _in_unit((inner - bottom) / height)
        u = 1 - t
        difference = first * u - last * t
        positive = difference >= 0
        root = (difference.square() + 4 * mean.square() * t * u).sqrt()
        part = 2 * mean * torch.where(positive, t, u)
        part = part / (part + root + torch.where(positive, difference, -difference))
        xi = torch.where(positive, part, 1 - part)
        result = left + width * xi
        log_slope = ((mean + excess * xi * (1 - xi)) / (mean * root)).log()
    else:
        xi = _in_unit((inner - left) / width)
        eta = 1 - xi
        product = xi * eta
        below = mean + excess * product
        result = bottom + height * xi * (mean * xi + first * eta) / below
        slope = last * xi.square() + 2 * mean * product + first * eta.square()
        log_slope = (slope * (mean / below).square()).log()
    inside = value == inner
    return torch.where(inside, result, value), torch.where(inside, log_slope, 0.0)


def _bin_of(value: Tensor, fractions: Tensor, room: float, least: float, bound: float) -> tuple[Tensor, Tensor]:
    """Ones at the bins below that of the value, and at its own; bins first. No gradient passes through a choice."""
    sizes = (fractions[:-1] * room + least).unbind()
    knots = [sizes[0] - bound]
    for size in sizes[1:]:
        knots.append(knots[-1] + size)
    beyond = (value.detach() >= torch.stack(knots)).to(value.dtype)
    edge = torch.ones_like(beyond[:1])
    lower = torch.cat([beyond, torch.zeros_like(edge)])
    return lower, torch.cat([edge, beyond]) - lower


def _in_unit(fraction: Tensor) -> Tensor:
    """The place in a bin, in [0, 1] also where rounding puts a value outside, with the gradient of the fraction."""
    exact = fraction.detach()
    return fraction + (exact.clamp(0, 1) - exact)


def _recording() -> bool:
    """Whether operations are written to a graph, by ``make_fx`` or ``torch.compile``."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def _total(terms: Tensor, dim: int) -> Tensor:
    """A sum over bins; in a graph a sum of single terms, which inductor fuses with what comes before and behind it."""
    return functools.reduce(torch.add, terms.unbind(dim)) if _recording() else terms.sum(dim)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over dimension 1, in a graph by single terms."""
    if not _recording():
        return logits.softmax(1)
    powers = (logits - functools.reduce(torch.maximum, logits.detach().unbind(1)).unsqueeze(1)).exp()
    return powers / _total(powers, 1).unsqueeze(1)
