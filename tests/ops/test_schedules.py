"""Schedules at the steps where their values are known."""

import copy
import math
import pickle

import pytest

from pyro_dgm.ops import CyclicalSchedule, LinearSchedule, SigmoidSchedule


def values(schedule, steps):
    return [schedule(t) for t in steps]


def test_linear():
    assert values(LinearSchedule(4), range(7)) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert values(LinearSchedule(2, start=3.0, end=-1.0, delay=5), (0, 5, 6, 7, 100)) == [3.0, 3.0, 1.0, -1.0, -1.0]
    assert LinearSchedule(3, 0.1, 0.3)(3) == 0.3  # not 0.30000000000000004


@pytest.mark.parametrize("steepness", [0.5, 10.0, 1e4])
def test_sigmoid(steepness):
    schedule = SigmoidSchedule(1000, start=0.2, end=0.8, steepness=steepness)
    assert schedule(0) == pytest.approx(0.2, abs=1e-15)
    assert schedule(-3) == schedule(0)
    assert schedule(500) == pytest.approx(0.5, abs=1e-15)
    assert schedule(1000) == schedule(5000) == pytest.approx(0.8, abs=1e-15)
    found = values(schedule, range(1001))
    assert found == sorted(found)
    for t in (100, 250, 400):  # point symmetric about the middle
        assert schedule(t) + schedule(1000 - t) == pytest.approx(1.0, abs=1e-14)


def test_sigmoid_is_the_logistic_curve_stretched():
    def sigma(x):
        return 1 / (1 + math.exp(-x))

    schedule = SigmoidSchedule(100, steepness=6.0)
    for t in (1, 17, 50, 83):
        want = (sigma(6 * (t / 100 - 0.5)) - sigma(-3)) / (sigma(3) - sigma(-3))
        assert schedule(t) == pytest.approx(want, abs=1e-14)


def test_cyclical():
    schedule = CyclicalSchedule(20, cycles=2, ratio=0.5)
    cycle = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert values(schedule, range(1, 21)) == pytest.approx(2 * cycle)
    assert values(schedule, (21, 22, 1000)) == [1.0, 1.0, 1.0]
    assert schedule(0) == schedule(1) == 0.0
    whole = CyclicalSchedule(8, cycles=2, ratio=1.0, start=1.0, end=5.0)
    assert values(whole, range(1, 10)) == [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    # 10 steps in 3 cycles: they start every 4 steps, and the last is cut short
    assert [t for t in range(1, 11) if CyclicalSchedule(10, cycles=3)(t) == 0.0] == [1, 5, 9]
    assert values(CyclicalSchedule(5, cycles=5), range(1, 7)) == [0.0] * 5 + [1.0]


@pytest.mark.parametrize("schedule", [LinearSchedule(7), SigmoidSchedule(7), CyclicalSchedule(7, cycles=2)], ids=repr)
def test_copies_are_equal(schedule):
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule
        assert values(other, range(10)) == values(schedule, range(10))
    assert "steps=7" in repr(schedule)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LinearSchedule(0), ValueError, "steps must be an integer of at least 1, got 0"),
        (lambda: SigmoidSchedule(1.5), TypeError, "steps must be an integer of at least 1, got 1.5"),
        (lambda: LinearSchedule(3, delay=-1), ValueError, "delay must be at least 0, got -1"),
        (lambda: SigmoidSchedule(3, steepness=0), ValueError, "steepness must be a finite number above 0, got 0"),
        (lambda: CyclicalSchedule(3, cycles=4), ValueError, "cycles must be from 1 to steps = 3, got 4"),
        (lambda: CyclicalSchedule(3, cycles=1, ratio=0.0), ValueError, r"ratio must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
