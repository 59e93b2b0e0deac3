"""Pyro's and zuko's transforms through the contract of ours: what works, and what is known to fail."""


import pytest

from tests.contracts import test_transform as contract
from tests.contracts.foreign_cases import CLAUSES, FOREIGN

CONDITIONAL_ONLY = {"context"}


def items():
    for name, case in FOREIGN.items():
        for clause in CLAUSES:
            if clause in CONDITIONAL_ONLY and not case.conditional:
                continue
            yield name, clause


@pytest.mark.parametrize("name, clause", [*items()])
def test_contract(name, clause, monkeypatch):
    case = FOREIGN[name]
    monkeypatch.setattr(contract, "CASES", {name: case.case()})

    def plane():
        made = case.make(2)
        return made if case.plane == "inverse" else made.inv

    monkeypatch.setattr(contract, "PLANE", {name: plane})
    function, arguments = CLAUSES[clause]
    getattr(contract, function)(name, *arguments)
