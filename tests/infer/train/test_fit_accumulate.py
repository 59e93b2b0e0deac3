"""Gradient accumulation: a step over several batches is the step on the joined batch."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from tests.infer.train.distributed_worker import GivenNoise, pairs
from tests.infer.train.fit_programs import auto_program, digits_like, small_vae

fit = functools.partial(pyro_dgm.fit, progress=False, device="cpu")
sgd = functools.partial(torch.optim.SGD, lr=0.05)


@pytest.mark.parametrize("n", [37, 41, 48])
@pytest.mark.parametrize("whose", ["ours", "pyro", "pyro, gradients only"])
def test_the_step_is_that_of_the_joined_batch(n: int, whose: str) -> None:
    objectives = {
        "ours": pyro_dgm.infer.ELBO,
        "pyro": pyro.infer.Trace_ELBO,
        "pyro, gradients only": pyro.infer.TraceGraph_ELBO,
    }
    outcomes = []
    for options in ({"batch_size": 24}, {"batch_size": 8, "accumulate": 3}):
        m = GivenNoise()
        run = fit(m, pairs(n), epochs=3, seed=0, optimizer=sgd, clip_norm=1.0, objective=objectives[whose](), **options)
        outcomes.append((run, m))
    (joined, one), (parts, other) = outcomes
    assert joined.steps == parts.steps == 3 * 2
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)
    assert joined.history["gradient_norm"] == pytest.approx(parts.history["gradient_norm"], rel=1e-12)
    # A float, as Pyro's objectives without a graph return it, is kept in single precision.
    rel = 1e-6 if whose == "pyro, gradients only" else 1e-12
    assert joined.history["train"] == pytest.approx(parts.history["train"], rel=rel)


def test_a_group_of_one_batch_is_a_step_as_ever() -> None:
    a, b = small_vae(), small_vae()
    fit(a, digits_like(64), epochs=2, batch_size=16, seed=0)
    fit(b, digits_like(64), epochs=2, batch_size=16, seed=0, accumulate=1)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("check_every", [1, 3])
def test_checks_that_wait(check_every: int) -> None:
    run = fit(small_vae(), digits_like(70), epochs=2, batch_size=8, accumulate=2, seed=0, check_every=check_every)
    again = fit(small_vae(), digits_like(70), epochs=2, batch_size=8, accumulate=2, seed=0)
    assert run.steps == 10 and run.history["train"] == pytest.approx(again.history["train"], rel=1e-12)


def test_the_scheduler_steps_with_the_optimiser() -> None:
    run = fit(
        small_vae(),
        digits_like(64),
        epochs=2,
        batch_size=8,
        accumulate=4,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        lr_scheduler_interval="step",
    )
    assert run.history["learning_rate"] == pytest.approx([1e-3, 1e-3 / 4])


def test_programs_that_scale_a_batch_up() -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def model(self, batch: torch.Tensor) -> None:
            mu = pyro.sample("mu", dist.Delta(self.loc, log_density=-(self.loc**2)))
            with pyro.plate("data", 40, subsample=torch.arange(len(batch))):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=batch)

        def guide(self, batch: torch.Tensor) -> None:
            pyro.sample("mu", dist.Delta(self.loc))

    found = []
    for options in ({"batch_size": 25}, {"batch_size": 10, "accumulate": 4}, {"batch_size": 5, "accumulate": 8}):
        m = Scaled()
        single = {"batch_size": 40} if options == {"batch_size": 25} else options
        fit(m, x, epochs=1, num_data=40, shuffle=False, optimizer=sgd, **single)
        found.append(m.loc.item())
    assert found == pytest.approx([found[0]] * 3, abs=1e-14) and found[0] != 0


def test_what_is_no_sum_over_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accumulate=2 divides a batch.*num_data"):
        fit(auto_program(), torch.randn(20), epochs=1, batch_size=5, accumulate=2)


def test_the_batch_at_fault_is_found() -> None:
    x = digits_like(48).clone()
    model_data = {"x": x, "bad": torch.zeros(48)}
    model_data["bad"][30] = torch.nan

    class Spoilt(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(()))

        def model(self, x: torch.Tensor, bad: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(self.loc, 1.0, validate_args=False), obs=bad)

        def guide(self, x: torch.Tensor, bad: torch.Tensor) -> None:
            pass

    with pytest.raises(pyro_dgm.infer.NonFiniteLossError, match="The model's site 'y' is the first.*1 of 8") as caught:
        fit(Spoilt(), model_data, epochs=1, batch_size=8, accumulate=3, shuffle=False)
    assert caught.value.site == "y" and caught.value.step == 2


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None])
def test_bad_counts(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="accumulate must be an integer of at least 1"):
        fit(small_vae(), digits_like(), epochs=1, accumulate=bad)
