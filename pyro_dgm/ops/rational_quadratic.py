"""Monotonic rational-quadratic splines: value and log-derivative in one pass, both directions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import accumulate

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
    parameters = parameters.movedim(-1, 0)
    shape = (wanted, *(1,) * (value.dim() + 1 - parameters.dim()), *parameters.shape[1:])
    room, least = 2 * bound * (1 - min_size * num_bins), 2 * bound * min_size
    inner = value.clamp(-bound, bound)
    find = _bin_written_out if _recording() else _bin_stacked
    (left, bottom), (width, height), raw = find(
        inner, parameters.reshape(shape), num_bins, room, least, bound, inverse, circular
    )
    # Zero gives slope 1, as in the tails.
    offset = math.log(math.expm1(1 - min_slope))
    first, last = (min_slope + functional.softplus(end + offset) for end in raw)
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


def _in_unit(fraction: Tensor) -> Tensor:
    """The place in a bin, in [0, 1] also where rounding puts a value outside, with the gradient of the fraction."""
    exact = fraction.detach()
    return fraction + (exact.clamp(0, 1) - exact)


def _recording() -> bool:
    """Whether operations are written to a graph, by ``make_fx`` or ``torch.compile``."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


Pair = Sequence[Tensor]


def _bin_stacked(
    value: Tensor,
    parameters: Tensor,
    num_bins: int,
    room: float,
    least: float,
    bound: float,
    inverse: bool,
    circular: bool,
) -> tuple[Pair, Pair, Pair]:
    """The bin of each value: lower ends and sizes on both axes, and slopes at both ends before they are made positive.

    Few operations on tensors of all bins, which come first, so that sums over them run along memory. No gradient
    passes through the choice of a bin.
    """
    logits, raw = parameters.contiguous().split((2 * num_bins, len(parameters) - 2 * num_bins))
    # Widths and heights together, as fractions of the interval less the least sizes.
    fractions = logits.unflatten(0, (2, num_bins)).softmax(1)
    sizes = (fractions.detach()[int(inverse), :-1] * room + least).unbind()
    beyond = (value.detach() >= torch.stack(list(accumulate(sizes))) - bound).to(value.dtype)
    edge = torch.ones_like(beyond[:1])
    # Ones at the bins below that of the value, and at its own.
    lower = torch.cat([beyond, torch.zeros_like(edge)])
    here = torch.cat([edge, beyond]) - lower
    start = (fractions * lower).sum(1) * room + (lower.sum(0) * least - bound)
    size = (fractions * here).sum(1) * room + least
    if circular:
        ends = (raw * here).sum(0), (raw * here.roll(1, 0)).sum(0)
    else:  # the empty sums at both ends are the zeros of the tails
        ends = (raw * here[1:]).sum(0), (raw * here[:-1]).sum(0)
    return start.unbind(), size.unbind(), ends


def _bin_written_out(
    value: Tensor,
    parameters: Tensor,
    num_bins: int,
    room: float,
    least: float,
    bound: float,
    inverse: bool,
    circular: bool,
) -> tuple[Pair, Pair, Pair]:
    """The same as :func:`_bin_stacked`, bin by bin on tensors of the shape of the value.

    Many small operations, all of one shape: inductor makes one loop of them and of their gradients.
    """
    terms = parameters.unbind()
    axes = [_sizes(terms[:num_bins], room, least), _sizes(terms[num_bins : 2 * num_bins], room, least)]
    raw = list(terms[2 * num_bins :])
    zero = torch.zeros_like(raw[0])
    slopes = [*raw, raw[0]] if circular else [zero, *raw, zero]
    starts = [[torch.full_like(sizes[0], -bound)] for sizes in axes]
    for ends, sizes in zip(starts, axes, strict=True):
        for size in sizes[:-1]:
            ends.append(ends[-1] + size)
    lists = [*starts, *axes, slopes[:-1], slopes[1:]]
    found = [items[0] for items in lists]
    for k in range(1, num_bins):
        beyond = value.detach() >= starts[int(inverse)][k].detach()
        found = [torch.where(beyond, items[k], so_far) for items, so_far in zip(lists, found, strict=True)]
    return found[:2], found[2:4], found[4:]


def _sizes(logits: Sequence[Tensor], room: float, least: float) -> list[Tensor]:
    """Sizes of the bins on one axis: a softmax written out."""
    largest = functools.reduce(torch.maximum, [logit.detach() for logit in logits])
    powers = [(logit - largest).exp() for logit in logits]
    scale = room / functools.reduce(torch.add, powers)
    return [power * scale + least for power in powers]
