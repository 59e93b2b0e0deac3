"""Graphs by key: what enters one, what is refused, and that a graph that is not its function is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_dgm.capture.recorded import Recorded, difference
from pyro_dgm.capture.static_graph import CannotCapture, StaticGraph

X = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


class Scaled:
    """A function with a number that a graph freezes, and a tensor that it reads."""

    def __init__(self):
        self.factor, self.shift = 2.0, torch.ones((), dtype=torch.float64)

    def __call__(self, x):
        return [self.factor * x + self.shift]


def test_each_key_has_its_graph():
    recorded, fn = Recorded(), Scaled()
    assert recorded.status() == "not seen yet"
    for x in (X, X[:2]):
        recorded.record(x.shape, fn, [x])
    assert recorded.status() == "captured: 2 graphs (aten)"
    fn.shift.fill_(5.0)  # a tensor is read at each call
    for x in (X, X[:2]):
        torch.testing.assert_close(recorded.graphs[x.shape](3 * x)[0], 6 * x + 5.0)


def test_only_so_many_are_kept(caplog):
    recorded, fn = Recorded(most=1), Scaled()
    assert not recorded.is_full()
    recorded.record("a", fn, [X])
    with caplog.at_level("INFO", "pyro_dgm"):
        assert recorded.is_full()
        assert recorded.is_full()
    assert [r.message for r in caplog.records] == ["more than 1 shapes of the inputs: further ones run eagerly"]
    del recorded.graphs["a"]
    assert not recorded.is_full()


@pytest.mark.parametrize(
    ("fn", "other", "reason"),
    [
        (lambda x: [x if x.sum() > 0 else -x], None, "depends on values"),
        (lambda x: [x * float(np.random.rand())], None, "Python's or NumPy's random numbers"),
        (lambda x: [x * x.tolist()[0]], [X.flip(0)], "reads data in a way that a graph would freeze"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_the_reason(fn, other, reason):
    recorded = Recorded()
    with pytest.raises(CannotCapture, match=reason):
        recorded.record("a", fn, [X], other_inputs=other)
    assert recorded.graphs == {}


def test_a_wrong_graph_is_found():
    """Wrong values, draws and writes, each made by a pass that breaks the graph."""

    def breaking(name, by):
        def rewrite(graph):
            for node in graph.graph.nodes:
                if name in str(node.target):
                    node.target = by
            graph.recompile()

        return rewrite

    total = torch.zeros(3, dtype=torch.float64)
    aten = torch.ops.aten
    cases = [
        (lambda x: [x + x], breaking("aten.add.Tensor", aten.sub.Tensor), "result 0 differs by"),
        (
            lambda x: [x + 0 * torch.rand_like(x)],
            breaking("rand_like", aten.zeros_like.default),
            "other random numbers",
        ),
        (lambda x: [x + total.add_(x)], breaking("add_", aten.add.Tensor), "writes other tensors"),
    ]
    for fn, rewrite, reason in cases:
        with pytest.raises(CannotCapture, match=f"something else than the sum: .*{reason}"):
            Recorded("the sum", passes=[rewrite]).record("a", fn, [X], known=[total])
        assert Recorded().record("a", fn, [X], known=[total]) is not None
    assert torch.equal(total, torch.zeros_like(total))  # dry runs leave nothing


def test_nothing_is_left_changed():
    total = torch.zeros((), dtype=torch.float64)
    state = torch.get_rng_state()
    graph = Recorded().record("a", lambda x: [torch.randn(3) * total.add_(x.sum())], [X], known=[total])
    assert difference(graph, [2 * X]) == ""
    assert float(total) == 0.0
    assert torch.equal(torch.get_rng_state(), state)


def test_an_outdated_graph_is_dropped_and_then_refused():
    recorded, fn = Recorded(forgiven=1), Scaled()
    recorded.record("a", fn, [X])
    assert recorded.check("a", [X])
    fn.factor = 3.0
    assert not recorded.check("a", [X])  # the second call is compared
    assert recorded.graphs == {}
    recorded.record("a", fn, [X])
    recorded.check("a", [X])
    fn.factor = 4.0
    with pytest.raises(CannotCapture, match="not the same operations on every call"):
        recorded.check("a", [X])


def test_giving_up_says_why_and_drops_all():
    said = []
    recorded = Recorded(say=said.append)
    recorded.record("a", Scaled(), [X])
    recorded.give_up("it is tired")
    assert said == ["it is tired"]
    assert recorded.status() == "eager: it is tired"
    assert recorded.graphs == {}


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_where_compiling_fails_the_graph_runs_as_recorded(fault, monkeypatch):
    def compile(self, inputs, good=False):
        if fault == "raises" and not good:
            raise CannotCapture("inductor cannot compile it: no compiler")
        self.backend = "inductor"
        self.compiled = self.graph if good else lambda *inputs: [2 * t for t in self.graph(*inputs)]

    monkeypatch.setattr(StaticGraph, "compile", compile)
    recorded, fn = Recorded(), Scaled()
    with pytest.raises(CannotCapture, match=r"cannot compile|compiled, its graph gives something else"):
        recorded.record("a", fn, [X], compile=[{}])
    assert recorded.status() == "captured: 1 graph (aten)"
    torch.testing.assert_close(recorded.graphs["a"](X), fn(X))
    assert recorded.record("b", fn, [X], compile=[{}, {"good": True}]).backend == "inductor"
