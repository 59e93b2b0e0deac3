"""What all objectives have in common, and whatever is adapted to be one."""

from __future__ import annotations

import copy
from typing import Any

import pyro.infer
import pytest
import torch
from pyro.infer import ReweightedWakeSleep, TraceGraph_ELBO
from pyro.infer.elbo import ELBO as PyroELBO

from pyro_dgm.infer import (
    CUBO,
    ELBO,
    ENERGY_OBJECTIVES,
    EnergyObjective,
    Objective,
    PersistentCD,
    Phase,
    as_objective,
)
from pyro_dgm.infer.objectives.metric import BOUND, LOSS
from pyro_dgm.models import EBM, LatentEBM, LinearGaussian

energies = pytest.mark.parametrize("cls", ENERGY_OBJECTIVES.values(), ids=ENERGY_OBJECTIVES.keys())


def linear() -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    return LinearGaussian(4, 2), torch.randn(6, 4)


def energy_program(cls: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    if cls.__name__ == "ShortRunML":
        return LatentEBM((2,), 2, hidden=(4,), prior_hidden=(4,)), torch.randn(8, 2)
    return EBM((2,), hidden=(4,)), torch.randn(8, 2)


@energies
def test_estimate_is_the_loss_and_its_own_surrogate(cls: Any) -> None:
    program, x = energy_program(cls)
    objective = cls()
    assert isinstance(objective, EnergyObjective) and isinstance(objective, PyroELBO)
    torch.manual_seed(1)
    objective.prepare(program.model, program.guide, (x,), {})
    loss, surrogate = objective.estimate(program.model, program.guide, (x,), {}, grad=True)
    assert loss is surrogate and loss.shape == () and loss.requires_grad
    objective = cls()
    torch.manual_seed(1)
    assert torch.equal(objective(program.model, program.guide)(x), loss)
    assert objective.step == 1
    loss, surrogate = objective.estimate(program.model, program.guide, (x,), {}, grad=False)
    assert surrogate is None and not loss.requires_grad


@energies
def test_check_leaves_random_state_and_objective_alone(cls: Any) -> None:
    program, x = energy_program(cls)
    objective = cls()
    objective.differentiable_loss(program.model, program.guide, x)
    state, random_state = copy.deepcopy(objective.state_dict()), torch.get_rng_state()
    objective.check(program, (x,), {})
    assert torch.equal(torch.get_rng_state(), random_state)
    after = objective.state_dict()
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after[k])) for k, v in state.items() if k == "chains")
    assert after["step"] == state["step"] == 1


def test_persistent_chains_stay_one_tensor() -> None:
    program, x = energy_program(PersistentCD)
    objective = PersistentCD(num_chains=5)
    module = objective(program.model, program.guide)
    module(x)
    chains = objective.chains
    saved = objective.state_dict()
    module(x)
    assert chains is objective.chains and objective.buffers() == [chains]
    assert not torch.equal(saved["chains"], chains)
    objective.load_state_dict(saved)
    assert chains is objective.chains and torch.equal(saved["chains"], chains)


@pytest.mark.parametrize("objective", [ELBO(), CUBO(num_particles=2), pyro.infer.Trace_ELBO()])
def test_evaluation_per_datum(objective: Any) -> None:
    m, x = linear()
    objective = as_objective(objective)
    torch.manual_seed(1)
    found = objective.evaluate(m.model, m.guide, (x,), {})
    torch.manual_seed(1)
    assert found.loss == objective.loss(m.model, m.guide, x)
    assert found.metrics == {objective.metric: objective.metric.of(found.loss / 6)}


def test_objectives_pass_as_they_are() -> None:
    objective = ELBO()
    assert as_objective(objective) is objective is objective.original
    assert objective.phases(None) == (Phase("program", objective),)


def plain(model: Any, guide: Any) -> Any:
    return lambda x: pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)


@pytest.mark.parametrize("original", [pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO(), plain])
def test_adapted_losses_are_the_originals(original: Any) -> None:
    m, x = linear()
    objective = as_objective(original)
    assert isinstance(objective, Objective) and objective.original is original and objective.differentiable
    assert objective.metric == (LOSS if original is plain else BOUND) and not objective.scheduled
    torch.manual_seed(1)
    expected = original(m.model, m.guide)(x)
    grads = torch.autograd.grad(expected, list(m.parameters()))
    torch.manual_seed(1)
    loss = objective.differentiable_loss(m.model, m.guide, x)
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, torch.autograd.grad(loss, list(m.parameters())), grads))
    torch.manual_seed(1)
    module = objective(m.model, m.guide)
    assert torch.equal(module(x), expected)
    torch.manual_seed(1)
    assert objective.loss(m.model, m.guide, x) == pytest.approx(expected.item())


@pytest.mark.uses_param_store
@pytest.mark.parametrize("original", [TraceGraph_ELBO(), ReweightedWakeSleep(2, max_plate_nesting=1)])
def test_adapted_gradients_alone(original: Any) -> None:
    m, x = linear()
    objective = as_objective(original)
    assert not objective.differentiable
    assert objective.metric == (BOUND if isinstance(original, TraceGraph_ELBO) else LOSS)
    torch.manual_seed(1)
    expected = original.loss_and_grads(m.model, m.guide, x)
    grads = [p.grad for p in m.parameters()]
    m.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    found = objective.loss_and_grads(m.model, m.guide, x)
    assert found == (expected[0] if isinstance(expected, tuple) else expected)
    assert all(torch.equal(p.grad, g) for p, g in zip(m.parameters(), grads, strict=True))
    with pytest.raises(TypeError, match="has no differentiable loss"):
        objective.differentiable_loss(m.model, m.guide, x)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (ELBO, r"loss must be an instance, ELBO\(\), got the class itself"),
        (pyro.infer.JitTrace_ELBO(), "loss must not be one of Pyro's JitTrace_ELBO"),
        (3.0, r"loss must be an ELBO or a callable of \(model, guide\), got float"),
    ],
)
def test_what_cannot_be_adapted_is_named(bad: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_objective(bad, "loss")


def test_a_callable_that_gives_no_scalar() -> None:
    m, x = linear()
    with pytest.raises(TypeError, match=r"must give a scalar tensor that depends on the parameters, got \(6,\)"):
        as_objective(lambda model, guide: lambda x: x.sum(-1)).differentiable_loss(m.model, m.guide, x)


def test_phases_are_checked() -> None:
    assert Phase("guide", ELBO()).measured == ELBO.metric
    with pytest.raises(ValueError, match="role must be one of 'program', 'model', 'guide', 'objective', got 'critic'"):
        Phase("critic", ELBO())
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got 0"):
        Phase("guide", ELBO(), steps=0)


def test_a_module_with_a_network_of_its_own_is_validated_as_it_was_trained() -> None:
    class Offset(torch.nn.Module):
        def __init__(self, loss: Any) -> None:
            super().__init__()
            self.loss_of, self.c = loss, torch.nn.Parameter(torch.tensor(5.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.loss_of(x) + self.c**2 * len(x)

    m, x = linear()
    objective = as_objective(lambda model, guide: Offset(ELBO()(model, guide)))
    module = objective(m.model, m.guide)
    with torch.no_grad():
        module.c.fill_(0.0)
    torch.manual_seed(0)
    found = objective.evaluator(m.model, m.guide)(x)
    torch.manual_seed(0)
    assert found == pytest.approx(ELBO().loss(m.model, m.guide, x))
