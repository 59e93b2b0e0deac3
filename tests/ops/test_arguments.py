"""Checks of arguments: ranges, choices and several counts."""

from __future__ import annotations

import math

import pytest

from pyro_dgm.ops.arguments import check_choice, check_counts, check_number


@pytest.mark.parametrize(
    ("within", "good", "bad"),
    [
        ("[0, 1)", (0, 0.5), (1, -0.1, math.nan)),
        ("(0, 1]", (0.1, 1), (0, 1.1, math.nan)),
        ("(0, inf)", (1e-300, 1e300), (0.0, math.inf)),
        ("[-1, inf]", (-1, math.inf), (-1.1,)),
    ],
)
def test_intervals(within, good, bad):
    for value in good:
        assert check_number("x", value, within=within) == value
    for value in bad:
        with pytest.raises(ValueError, match="x must be in ") as raised:
            check_number("x", value, within=within)
        assert str(raised.value) == f"x must be in {within}, got {value!r}"


def test_least_values():
    assert check_number("x", 0, least=0) == 0
    for value in (-1e-9, math.nan):
        with pytest.raises(ValueError, match=f"x must be at least 0, got {value!r}"):
            check_number("x", value, least=0)


def test_choices():
    assert check_choice("kind", "b", "a", "b", None) == "b"
    with pytest.raises(ValueError, match="kind must be 'a', 'b' or None, got 'c'"):
        check_choice("kind", "c", "a", "b", None)


def test_several_counts():
    check_counts(num_samples=1, num_chains=2)
    with pytest.raises(ValueError, match="num_chains must be an integer of at least 2, got 1"):
        check_counts(2, num_samples=2, num_chains=1)
    with pytest.raises(TypeError, match="num_samples must be an integer of at least 1"):
        check_counts(num_samples=1.0)
