"""A graph made smaller is the same function, at other inputs than it was recorded with too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyro_dgm.capture.passes import apply_passes
from pyro_dgm.capture.static_graph import record
from tests.devices import DevicesAreGiven

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

CASES = {
    "ones": lambda x: [x * torch.ones_like(x) + torch.zeros(3, dtype=x.dtype) - 0.0],
    "signs": lambda x: [torch.neg(torch.neg(x)) + torch.neg(x) - torch.neg(x * 2.0), torch.neg(x).sum(0)],
    "singleton sums": lambda x: [x.unsqueeze(0).sum(0), x[:, None].sum([1]).sum(1)],
    "numbers": lambda x: [2.0 * (3.0 * x) / 1.0, 1.0 - x, x.new_full((3,), 2.0) * x, x.pow(1)],
    "expanded": lambda x: [x[0].expand(4, 3) * x, x.sum().expand(4, 3) + x],
    "transposed": lambda x: [(x @ W).T, x.T.T, x.permute(1, 0).permute(1, 0) @ W],
    "writes": lambda x: [x.clone().mul_(2.0).add_(1.0), torch.zeros_like(x).copy_(x)],
    "writes to a view": lambda x: [_row_written(x)],
    "writes to a view of a constant": lambda x: [_constant_row_written(x)],
    "writes by strides": lambda x: [_diagonal_written(x)],
    "strides of a constant": lambda x: [torch.ones(4, 4, dtype=x.dtype).as_strided((4,), (5,)) * x[:, 0]],
    "equal": lambda x: [x.exp() + x.exp(), x.exp() * 2.0],
    "softplus": lambda x: list(torch.func.vjp(lambda y: F.softplus(y).sum(), x)[1](torch.ones((), dtype=x.dtype))),
    "gradient": lambda x: list(torch.func.grad_and_value(lambda y: (F.softplus(y @ W) - y @ W).sum())(x)),
    "casts": lambda x: [x.double() + x.float().double(), x.clone().detach().alias() if hasattr(x, "alias") else x],
    "integers": lambda x: [(x > 0).long() * 2 + 1, torch.arange(3) * torch.ones(3, dtype=torch.long) + x],
    "reshaped": lambda x: [x.sum().expand(6).reshape(-1) * 1.0, x.T.reshape(-1), x.view(2, 6).view(12)],
}


def _row_written(x):
    y = x.clone()
    y[1] = x[0] * 3.0
    return y + x


def _constant_row_written(x):
    y = torch.zeros(4, 3, dtype=x.dtype)
    y[1] = x[0] * 3.0
    return y + x


def _diagonal_written(x):
    """As what functorch makes of a gradient through a write to ``matrix.view(-1)[::4]``."""
    y = torch.zeros(3, 3, dtype=x.dtype)
    y.as_strided((3,), (4,)).copy_(x[0])
    return y @ x.T


@pytest.mark.parametrize("name", list(CASES))
def test_same_function(name):
    fn = CASES[name]
    graph = record(fn, [X])
    before = graph.operations
    apply_passes(graph.graph)
    assert graph.operations <= before
    for x in (X, 2.0 * X.flip(0) - 1.0):
        torch.testing.assert_close(list(graph(x)), list(fn(x)))


@pytest.mark.parametrize("name", ["ones", "numbers", "gradient", "softplus"])
def test_constants_are_given_the_device_of_their_graph(name):
    graph = record(CASES[name], [X])
    with DevicesAreGiven() as mode:
        apply_passes(graph.graph)
    assert not mode.places
    torch.testing.assert_close(list(graph(X)), list(CASES[name](X)))


def test_random_draws_and_written_inputs_stay():
    """What draws stays in number and order; what is written outside is written."""
    buffer = torch.zeros(3)

    def fn(x):
        a, b = torch.rand(3), torch.rand(3)
        buffer.add_(1.0)
        return [a - b + 0.0 * x.sum()]

    x = torch.ones(2)
    graph = record(fn, [x])
    apply_passes(graph.graph)
    buffer.zero_()
    torch.manual_seed(0)
    got = graph(x)[0]
    assert buffer.tolist() == [1.0, 1.0, 1.0]
    torch.manual_seed(0)
    torch.testing.assert_close(got, torch.rand(3) - torch.rand(3))


def test_fewer_operations():
    graph = record(lambda x: [torch.exp(torch.ones(3, dtype=x.dtype) * (x * 1.0 + 0.0))], [X])
    apply_passes(graph.graph)
    assert graph.operations == 1


def _summed(total, x):
    return total.add_(x.sum(0))


WRITING = {
    "a product by one": lambda total, x: [total * 1.0, _summed(total, x)],
    "a sum with zero": lambda total, x: [(total + torch.zeros_like(total)).exp(), _summed(total, x)],
    "a cast to the same type": lambda total, x: [
        torch.ops.aten._to_copy(total, dtype=total.dtype), _summed(total, x)
    ],
    "a clone": lambda total, x: [total.clone().exp(), _summed(total, x)],
    "a written copy": lambda total, x: [(total * 1.0)[0].add_(x.sum()), total.exp()],
    "a part of a written tensor": lambda total, x: [total[0] * 1.0, _summed(total, x)],
    "signs": lambda total, x: (lambda a: [_summed(total, x).exp(), -a])(-total),
    "numbers": lambda total, x: (lambda a: [_summed(total, x).exp(), a * 3.0])(total * 2.0),
    "equal on a view": lambda total, x: (lambda v: [v.exp(), _summed(total, x) * 2.0, v.exp()])(total.view(3, 1)),
    "a transposed product": lambda total, x: (lambda p: [_summed(total, x), p.T])(x @ total.view(3, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRITING))
def test_what_was_read_before_a_write_is_what_it_was(name):
    """A tensor that is written later cannot stand for its copy, nor be read later than it was."""
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    total = start.clone()

    def fn(x):
        return WRITING[name](total, x)

    graph = record(fn, [X])
    apply_passes(graph.graph)
    for x in (X, 2.0 * X.flip(0) - 1.0):
        total.copy_(start)
        expected, left = [t.clone() for t in fn(x)], total.clone()
        total.copy_(start)
        found = list(graph(x))
        torch.testing.assert_close([f.clone() for f in found], expected)
        torch.testing.assert_close(total, left)


def test_results_are_the_callers_to_write_into():
    """No result lies in the memory of an input, of a constant or of another result, where the function gave a copy."""

    def fn(x):
        constants = torch.zeros_like(x), torch.zeros(3, dtype=x.dtype) + 1.0
        return [x * 1.0, x.exp(), x.exp(), torch.neg(torch.neg(x)), *constants]

    x = X.clone()
    graph = record(fn, [x])
    apply_passes(graph.graph)
    for _ in range(2):
        found = list(graph(x))
        torch.testing.assert_close(found, fn(X))
        torch.testing.assert_close(x, X)
        for i, t in enumerate(found):
            t.add_(i + 1.0)


def test_a_write_that_would_change_the_type_stays_a_write():
    def fn(x):
        y = x.float().exp()
        y.add_(x)
        return [y]

    graph = record(fn, [X])
    apply_passes(graph.graph)
    torch.testing.assert_close(list(graph(X)), fn(X))
