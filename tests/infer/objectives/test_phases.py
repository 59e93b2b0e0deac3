"""Objectives with several losses: their phases add up to the one loss that they are by default."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_dgm.infer import AdversarialELBO, FactorVAE, ReweightedWakeSleep, WakeSleep
from pyro_dgm.models import LinearGaussian

CASES = [
    (FactorVAE(2, hidden=(8,), discriminator_steps=3), ("objective", 3), ("program", 1)),
    (AdversarialELBO(2, hidden=(8,), discriminator_steps=2), ("objective", 2), ("program", 1)),
    (WakeSleep(2, guide_steps=2), ("model", 1), ("guide", 2)),
    (ReweightedWakeSleep(4, guide_steps=1), ("model", 1), ("guide", 1)),
    (ReweightedWakeSleep(4, guide_steps=1, phi=0.3), ("model", 1), ("guide", 1)),
]


def gradients(objective: Any, m: Any, x: torch.Tensor, wrt: list[Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(3)
    loss = objective.differentiable_loss(m.model, m.guide, x)
    return loss.detach(), list(torch.autograd.grad(loss, wrt, materialize_grads=True, allow_unused=True))


@pytest.mark.parametrize(("objective", "first", "second"), CASES, ids=lambda c: type(c).__name__)
def test_phases_add_up_to_the_objective(objective: Any, first: Any, second: Any) -> None:
    torch.manual_seed(0)
    m, x = LinearGaussian(4, 2).double(), torch.randn(6, 4, dtype=torch.float64)
    objective.prepare(m.model, m.guide, (x,), {})
    for p in objective.parameters():  # a discriminator that is no constant
        torch.nn.init.normal_(p, std=0.3)
    wrt = [*m.parameters(), *objective.parameters()]
    loss, whole = gradients(objective, m, x, wrt)
    phases = objective.phases(m)
    assert [(phase.role, phase.steps) for phase in phases] == [first, second]
    parts = [gradients(phase.objective, m, x, wrt) for phase in phases]
    torch.testing.assert_close([a + b for a, b in zip(parts[0][1], parts[1][1], strict=True)], whole)
    for phase, (value, _) in zip(phases, parts, strict=True):
        if phase.role == "objective":
            assert phase.objective.metric.name == "discriminator loss" and value > 0
        else:
            torch.testing.assert_close(value, loss)
            assert phase.objective.metric == objective.metric


@pytest.mark.parametrize("cls", [FactorVAE, AdversarialELBO])
def test_a_discriminator_is_trained_by_its_phase_alone(cls: Any) -> None:
    torch.manual_seed(0)
    m, x = LinearGaussian(4, 2), torch.randn(6, 4)
    objective = cls(hidden=(8,), discriminator_steps=1)
    discriminator, program = (phase.objective for phase in objective.phases(m))
    _, of_program = gradients(discriminator, m, x, list(m.parameters()))
    assert not any(g.any() for g in of_program)
    _, of_network = gradients(program, m, x, objective.parameters())
    assert not any(g.any() for g in of_network)


def test_one_phase_by_default_and_bad_steps() -> None:
    for objective in (FactorVAE(), AdversarialELBO(), WakeSleep(), ReweightedWakeSleep()):
        (phase,) = objective.phases(None)
        assert phase.role == "program" and phase.objective is objective
    with pytest.raises(ValueError, match="discriminator_steps must be an integer of at least 1, or None, got 0"):
        FactorVAE(discriminator_steps=0)
    with pytest.raises(ValueError, match="guide_steps must be an integer of at least 1, or None, got 0"):
        WakeSleep(guide_steps=0)
