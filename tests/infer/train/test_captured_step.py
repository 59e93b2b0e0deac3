"""Whole training steps as graphs: the optimiser's own trajectory, and nothing taken in that is not finite."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer import ELBO, DReG
from pyro_dgm.infer.train.captured_step import CapturedSteps
from pyro_dgm.models import LinearGaussian

OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True),
}


def setup(make, objective=None, clip_norm=None, captured=True):
    torch.manual_seed(0)
    m = LinearGaussian(4, 2)
    x = torch.randn(12, 4)
    objective = objective or ELBO()
    optimizer = make(list(m.parameters()))
    module = objective(m.model, m.guide)

    def eager(batch):
        optimizer.zero_grad()
        loss = module(batch)
        (loss / len(batch)).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(m.parameters(), clip_norm)
        optimizer.step()
        return loss.detach()

    torch.manual_seed(1)
    eager(x[:6])  # an optimiser's state exists after its first step
    steps = None
    if captured:
        steps = CapturedSteps(
            objective, m.model, m.guide, list(m.parameters()), optimizer, lambda n: 1 / n, clip_norm, "aten"
        )
        steps.prepare(x[:6])
    return m, x, optimizer, eager, steps


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_trajectory_is_the_optimisers_own(name, clip_norm):
    ends = []
    for captured in (False, True):
        m, x, optimizer, eager, steps = setup(OPTIMIZERS[name], clip_norm=clip_norm)
        if captured:
            steps.capture(x[:6])
        losses = []
        for i in range(20):
            batch = x[6:] if i % 2 else x[:6]
            losses.append(float(steps.step(batch)[0] if captured else eager(batch)))
        ends.append((losses, [p.detach().clone() for p in m.parameters()], optimizer.state_dict()["state"]))
    torch.testing.assert_close(ends[0], ends[1], rtol=2e-4, atol=2e-5)
    assert not optimizer.param_groups[0].get("capturable", False)
    assert isinstance(optimizer.param_groups[0]["lr"], float)
    assert all(p.grad is None or p.grad.shape == p.shape for p in m.parameters())


def test_learning_rate_changes_without_a_new_graph():
    ends = []
    for captured in (False, True):
        m, x, optimizer, eager, steps = setup(OPTIMIZERS["Adam"])
        if captured:
            steps.capture(x[:6])
        for i in range(10):
            optimizer.param_groups[0]["lr"] = 0.05 / (i + 1)
            steps.step(x[:6]) if captured else eager(x[:6])
        ends.append([p.detach() for p in m.parameters()])
    torch.testing.assert_close(*ends, rtol=2e-4, atol=2e-5)


def test_an_optimiser_with_a_number_for_its_rate_gives_its_graph_up_when_it_changes():
    _, x, optimizer, _, steps = setup(OPTIMIZERS["RMSprop"])
    steps.capture(x[:6])
    assert steps.fixed_rates
    assert steps.step(x[:6]) is not None
    optimizer.param_groups[0]["lr"] *= 0.5
    assert steps.step(x[:6]) is None


def test_an_optimiser_that_reads_values_is_refused():
    m, x, _, _, steps = setup(lambda p: torch.optim.Adagrad(p, lr=1e-2))
    with pytest.raises(CannotCapture, match="depends on values"):
        steps.capture(x[:6])
    before = [p.detach().clone() for p in m.parameters()]
    assert steps.step(x[:6]) is None
    torch.testing.assert_close([p.detach() for p in m.parameters()], before, rtol=0, atol=0)


def test_capturing_changes_nothing():
    m, x, _, _, steps = setup(OPTIMIZERS["Adam"])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    before = [t.detach().clone() for t in (*m.parameters(), *steps._state())]
    steps.capture(x[:6])
    steps.capture_block(x, torch.arange(12).reshape(2, 6), lambda data, i: data[i])
    after = [t.detach() for t in (*m.parameters(), *steps._state())]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_block_is_its_steps():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).reshape(2, 6)
    ends = []
    for block in (False, True):
        m, x, _, _, steps = setup(OPTIMIZERS["Adam"], DReG(num_particles=3))
        steps.capture(x[:6])
        steps.capture_block(x, order, lambda data, i: data[i])
        rows = []
        for _ in range(3):
            if block:
                rows += list(steps.block(x, order))
            else:
                rows += [torch.stack(steps.step(x[i])) for i in order]
        ends.append([torch.stack(rows), *(p.detach() for p in m.parameters())])
    torch.testing.assert_close(*ends)


def test_a_step_that_is_not_finite_changes_nothing():
    m, x, _, _, steps = setup(OPTIMIZERS["Adam"])
    steps.capture(x[:6])
    steps.capture_block(x, torch.arange(12).reshape(2, 6), lambda data, i: data[i])
    before = [t.detach().clone() for t in (*m.parameters(), *steps._state())]
    bad = x.clone()
    bad[2, 1] = torch.nan
    loss, _ = steps.step(bad[:6])
    assert not torch.isfinite(loss)
    rows = steps.block(bad, torch.arange(12).reshape(2, 6))
    assert torch.isfinite(rows[:, 0]).tolist() == [False, True]
    torch.testing.assert_close([t.detach() for t in (*m.parameters(), *steps._state())], before, rtol=0, atol=0)
    rows = steps.block(bad, torch.arange(12).flip(0).reshape(2, 6))  # good first, bad second: one step is taken
    assert torch.isfinite(rows[:, 0]).tolist() == [True, False]
    assert not torch.equal(next(m.parameters()), before[0])
    assert all(torch.isfinite(p).all() for p in m.parameters())


def test_compiled_block_of_a_bayesian_regression():
    torch.manual_seed(0)
    X = torch.randn(20, 3)
    y = X @ torch.tensor([1.0, -2.0, 0.5])

    def model(X, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ w, 0.5), obs=y)

    with pyro.settings.context(module_local_params=True):
        ends = []
        for block in (False, True):
            guide = AutoNormal(model)
            guide(X, y)
            objective = ELBO()
            optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
            torch.manual_seed(2)
            (objective(model, guide)(X, y) / 20).backward()
            optimizer.step()
            steps = CapturedSteps(objective, model, guide, list(guide.parameters()), optimizer, lambda n: 1 / n)
            steps.prepare((X, y))
            order = torch.arange(20).repeat(3, 1)
            if block:
                steps.capture_block((X, y), order, lambda data, i: tuple(t[i] for t in data))
                steps.block((X, y), order)
            else:
                for _ in range(3):
                    optimizer.zero_grad()
                    (objective(model, guide)(X, y) / 20).backward()
                    optimizer.step()
            ends.append([p.detach() for p in guide.parameters()])
        torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)
