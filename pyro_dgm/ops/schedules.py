"""Numbers that follow the step of training: a weight that is warmed up, or warmed up again and again.

A schedule is called with the number of the training step, 1 for the first, and gives a float.  Any function will do
where a schedule is taken; these can also be compared, copied and read in a ``repr``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_dgm.ops.arguments import check_count, check_number

__all__ = ["CyclicalSchedule", "LinearSchedule", "SigmoidSchedule"]


@dataclass(frozen=True)
class LinearSchedule:
    r"""From ``start`` to ``end`` in a straight line, and on at ``end``.

    .. math:: v(t) = a + (b - a) \min\left(1, \max\left(0, \frac{t - d}{T}\right)\right)

    :param steps: T, training steps from ``start`` to ``end``.
    :param start: a, the value before.
    :param end: b, the value after.
    :param delay: d, steps for which the value stays at ``start``.
    :raises ValueError: for fewer than one step or a delay below 0.

    Source: for the weight of the KL, C. K. Sonderby, T. Raiko, L. Maaloe, S. K. Sonderby and O. Winther (2016),
    arXiv:1602.02282.

    Example::

        >>> from pyro_dgm.ops import LinearSchedule
        >>> [LinearSchedule(4)(t) for t in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    steps: int
    start: float = 0.0
    end: float = 1.0
    delay: int = 0

    def __post_init__(self) -> None:
        _check_ends(self)
        check_number("delay", self.delay, finite=True, least=0)

    def __call__(self, step: int) -> float:
        return _between(self.start, self.end, min(1.0, max(0.0, (step - self.delay) / self.steps)))


@dataclass(frozen=True)
class SigmoidSchedule:
    r"""From ``start`` to ``end`` along a logistic curve: slowly, fast, slowly, and on at ``end``.

    .. math:: v(t) = a + (b - a)
              \frac{\sigma(k (u - \frac12)) - \sigma(-\frac k2)}{\sigma(\frac k2) - \sigma(-\frac k2)},
              \qquad u = \min\left(1, \max\left(0, \frac tT\right)\right)

    The curve is stretched so that it starts and ends where it says; it is half way at half the steps.

    :param steps: T, training steps from ``start`` to ``end``.
    :param start: a.
    :param end: b.
    :param steepness: k, above 0; the curve is near a line for 1 and near a jump for 50.
    :raises ValueError: for fewer than one step, or a steepness that is not above 0.

    Source: S. R. Bowman, L. Vilnis, O. Vinyals, A. M. Dai, R. Jozefowicz and S. Bengio (2016), arXiv:1511.06349.

    Example::

        >>> from pyro_dgm.ops import SigmoidSchedule
        >>> [round(SigmoidSchedule(4)(t), 3) for t in range(6)]
        [0.0, 0.07, 0.5, 0.93, 1.0, 1.0]
    """

    steps: int
    start: float = 0.0
    end: float = 1.0
    steepness: float = 10.0

    def __post_init__(self) -> None:
        _check_ends(self)
        check_number("steepness", self.steepness)
        if not 0 < self.steepness < math.inf:
            raise ValueError(f"steepness must be a finite number above 0, got {self.steepness!r}")

    def __call__(self, step: int) -> float:
        # tanh(x / 2) is the sigmoid of x, stretched to (-1, 1), and overflows nowhere
        half = self.steepness / 4
        share = min(1.0, max(0.0, step / self.steps))
        return _between(self.start, self.end, 0.5 + 0.5 * math.tanh(half * (2 * share - 1)) / math.tanh(half))


@dataclass(frozen=True)
class CyclicalSchedule:
    r"""From ``start`` to ``end`` in each of M cycles, a line for a part of the cycle and ``end`` for the rest of it.

    .. math:: v(t) = a + (b - a) \min\left(1, \frac{\tau}{R}\right), \qquad
              \tau = \frac{(t - 1) \bmod \lceil T / M \rceil}{T / M}

    and ``end`` after T steps.  Each time the weight of the KL falls back, the code is free to carry more, and starts
    from what the last cycle has learned.

    :param steps: T, training steps of all cycles together.
    :param cycles: M.
    :param ratio: R, the part of a cycle in which the value rises, in (0, 1].
    :param start: a.
    :param end: b.
    :raises ValueError: for fewer than one step a cycle, fewer than one cycle, or a ratio outside (0, 1].

    Source: H. Fu, C. Li, X. Liu, J. Gao, A. Celikyilmaz and L. Carin (2019), arXiv:1903.10145.

    Example::

        >>> from pyro_dgm.ops import CyclicalSchedule
        >>> [CyclicalSchedule(8, cycles=2)(t) for t in range(1, 10)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """

    steps: int
    cycles: int = 4
    ratio: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check_ends(self)
        check_number("cycles", self.cycles)
        if not 1 <= self.cycles <= self.steps:
            raise ValueError(f"cycles must be from 1 to steps = {self.steps}, got {self.cycles!r}")
        check_number("ratio", self.ratio, within="(0, 1]")

    def __call__(self, step: int) -> float:
        if step > self.steps:
            return float(self.end)
        length = self.steps / self.cycles
        share = (max(step, 1) - 1) % math.ceil(length) / length
        return _between(self.start, self.end, min(1.0, share / self.ratio))


def _check_ends(schedule: Any) -> None:
    check_count("steps", schedule.steps)
    check_number("start", schedule.start, finite=True)
    check_number("end", schedule.end, finite=True)


def _between(start: float, end: float, share: float) -> float:
    return float(end) if share == 1.0 else start + (end - start) * share
