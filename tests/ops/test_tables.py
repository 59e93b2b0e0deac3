"""Tables of results: rows by name and number, data frames, text."""

from __future__ import annotations

from typing import Any

import pytest

from pyro_dgm.ops.tables import ResultTable, plus_minus, text_table


class Scores(ResultTable):
    index = "who"

    def __rich__(self) -> Any:
        return text_table("Scores", ["who", "score"], [[r["who"], f"{r['score']:.1f}"] for r in self.rows])


TABLE = Scores([{"who": "a", "score": 1.5}, {"who": "b", "score": -2.0}])


def test_rows_by_name_and_number():
    assert len(TABLE) == 2
    assert TABLE["b"] is TABLE[1] and TABLE[-2]["who"] == "a"
    with pytest.raises(KeyError, match=r"no who 'c'; there are \['a', 'b'\]"):
        TABLE["c"]


def test_as_a_frame_and_as_text():
    assert TABLE.to_frame().loc["a", "score"] == 1.5
    assert repr(TABLE) == "Scores(['a', 'b'])"
    lines = [line.split() for line in str(TABLE).splitlines() if line.strip()]
    assert lines[0] == ["Scores"] and lines[-1] == ["b", "-2.0"]
    assert plus_minus(-17.294, 0.0123) == "-17.29 ± 0.01"
