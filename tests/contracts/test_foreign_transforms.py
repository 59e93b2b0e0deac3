"""Pyro's and zuko's transforms through the contract of ours: what works, and what is known to fail."""

import importlib.util

import pytest

from tests.contracts import test_transform as contract
from tests.contracts.foreign_cases import CLAUSES, FAILURES, FOREIGN, PAGE, on_the_page, table

#: what runs with the fast tests
FAST = {"inverse", "log-determinant", "optimiser step", "context", "distributions"}
SLOW = {"zuko GF", "zuko NAF"}


def items():
    for name, case in FOREIGN.items():
        for clause in CLAUSES:
            if clause == "context" and not case.conditional:
                continue
            marks = [] if clause in FAST and name not in SLOW else [pytest.mark.slow]
            if (name, clause) in FAILURES:
                marks.append(pytest.mark.xfail(strict=True, reason=FAILURES[name, clause]))
            yield pytest.param(name, clause, marks=marks)


@pytest.mark.parametrize("name, clause", [*items()])
def test_contract(name, clause, monkeypatch):
    if name.startswith("zuko") and importlib.util.find_spec("zuko") is None:
        pytest.skip("zuko is not installed")
    case = FOREIGN[name]
    monkeypatch.setattr(contract, "CASES", {name: case.case()})
    monkeypatch.setattr(contract, "PLANE", {name: case.on_the_plane})
    function, arguments = CLAUSES[clause]
    getattr(contract, function)(name, *arguments)


def test_the_page_says_where_they_fail():
    assert on_the_page(PAGE.read_text()) == table(), "run python -m tests.contracts.foreign_cases"


def test_every_known_failure_is_of_a_case():
    assert {name for name, _ in FAILURES} <= set(FOREIGN) and {clause for _, clause in FAILURES} <= set(CLAUSES)
