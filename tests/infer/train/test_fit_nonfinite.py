"""A loss or gradient that is not finite stops training, and the error says where it came from."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.train.checkpoints.checkpoint import load_checkpoint
from pyro_dgm.infer.train.nonfinite import NonFiniteLossError
from tests.infer.train.fit_programs import digits_like, small_vae

fit = functools.partial(
    pyro_dgm.fit, progress=False, device="cpu", optimizer=functools.partial(torch.optim.SGD, lr=0.0)
)


class Chain(torch.nn.Module):
    """x <- b <- a, with a place to break each site at a given call."""

    def __init__(self, broken: str = "", at: int = 6) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.5))
        self.broken, self.at, self.calls = broken, at, 0

    def bad(self, name: str) -> torch.Tensor:
        return torch.tensor(float("nan") if name == self.broken and self.calls > self.at else 0.0)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(self.w * torch.ones(len(x)), 1.0, validate_args=False))
            b = pyro.sample("b", dist.Normal(a + self.bad("model b"), 1.0, validate_args=False))
            pyro.sample("x", dist.Normal(b + self.bad("model x"), 1.0, validate_args=False), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        self.calls += 1
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(self.w * x + self.bad("guide a"), 1.0, validate_args=False))
            pyro.sample("b", dist.Normal(a + self.bad("guide b"), 1.0, validate_args=False))


OBJECTIVES = [
    pyro_dgm.infer.ELBO(),
    pyro_dgm.infer.IWAE(num_particles=3),
    pyro.infer.Trace_ELBO(),
    pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True),
    pyro.infer.TraceGraph_ELBO(),
]


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{type(o).__module__.split('.')[0]}-{type(o).__name__}"
)
@pytest.mark.parametrize("broken", ["guide a", "guide b", "model b", "model x"])
def test_the_site_is_named(broken: str, objective: Any, tmp_path: Path) -> None:
    m = Chain(broken, at=20)  # at a call that comes after those by which the program is looked at first
    with pytest.raises(NonFiniteLossError) as caught:
        fit(m, torch.randn(20), epochs=30, batch_size=10, seed=0, objective=objective, checkpoint_dir=tmp_path)
    error = caught.value
    role, site = broken.split()
    assert (error.role, error.site) == (role, site)
    assert f"the {role}'s site '{site}'" in str(error).replace("The ", "the ")
    assert error.checkpoint is not None and str(error.checkpoint) in str(error)
    assert len(load_checkpoint(error.checkpoint)[2]["history"]["train"]) == error.epoch - 1
    assert torch.isfinite(m.w)  # stopped before the optimiser's step


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_it_is_a_floating_point_error_with_the_step() -> None:
    # One evaluation before training, then two steps an epoch: the sixth is the second of the third epoch.
    with pytest.raises(FloatingPointError, match="in epoch 3 at step 2") as caught:
        fit(Chain("model x", at=6), torch.randn(20), epochs=9, batch_size=10, objective=pyro.infer.Trace_ELBO())
    assert (caught.value.epoch, caught.value.step, caught.value.checkpoint) == (3, 2, None)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_nan_in_the_data_is_named() -> None:
    x = torch.randn(20)
    x[13] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"[Tt]he batch holds 1 of 20 values that are not finite") as caught:
        fit(Chain(), x, epochs=1)
    assert caught.value.site is not None
    # A family with check_batch refuses it before the first step.
    images = digits_like()
    images[3, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 values that are not finite"):
        fit(small_vae(), images, epochs=1)
    # With a transform the data are seen batch by batch only.
    with pytest.raises((NonFiniteLossError, ValueError)):
        fit(small_vae(), images, epochs=1, batch_size=8, shuffle=False, transform=lambda b: b.clone())


def test_an_error_of_argument_validation_is_explained() -> None:
    class Validated(Chain):
        def model(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(self.w * torch.ones(len(x)), 1.0))
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    with pytest.raises(NonFiniteLossError, match="raised ValueError") as caught:
        fit(Validated("guide a"), torch.randn(20), epochs=9, batch_size=10, objective=pyro.infer.Trace_ELBO())
    assert (caught.value.role, caught.value.site) == ("guide", "a")
    assert isinstance(caught.value.__cause__, ValueError)


def test_other_errors_of_the_program_pass_through() -> None:
    class Raises(Chain):
        def model(self, x: torch.Tensor) -> None:
            if self.calls > 3:
                raise ValueError("my own")
            super().model(x)

    with pytest.raises(ValueError, match="^my own") as caught:
        fit(Raises(), torch.randn(20), epochs=9, batch_size=10)
    assert type(caught.value) is ValueError


def test_a_gradient_that_is_not_finite_is_found_with_its_site() -> None:
    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(1.0))
            self.v = torch.nn.Parameter(torch.tensor(0.0))

        def model(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(self.w, 1.0), obs=x)
                pyro.sample("x", dist.Normal(self.v.sqrt(), 1.0), obs=x)  # finite at 0, its slope is not

        def guide(self, x: torch.Tensor) -> None:
            pass

    with pytest.raises(NonFiniteLossError, match=r"gradient's norm is (inf|nan)") as caught:
        fit(Root(), torch.randn(20), epochs=1)
    assert caught.value.site == "x" and "finite in v" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_weights_that_are_not_finite_already_are_named() -> None:
    m = Chain()
    with torch.no_grad():
        m.w.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="arameters that are not finite already: w"):
        fit(m, torch.randn(20), epochs=1)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize(("at", "late"), [(7, 3), (10, 0)])
def test_a_rarer_look_says_that_it_came_late(at: int, late: int) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 10, "check_every": 10, "objective": pyro.infer.Trace_ELBO()}
    with pytest.raises(NonFiniteLossError) as caught:
        fit(Chain("model x", at), torch.randn(100), **options)
    assert caught.value.step == at
    assert ("check_every=1 stops before that" in str(caught.value)) == bool(late)
    assert (f"seen {late} steps later" in str(caught.value)) == bool(late)
    # Once the weights took it in, every site is touched and none is to blame.
    assert caught.value.site == (None if late else "x")
    assert ("not finite already: w" in str(caught.value)) == bool(late)


def test_a_rarer_look_gives_the_same_record() -> None:
    runs = [fit(small_vae(), digits_like(), epochs=2, batch_size=8, seed=0, check_every=k) for k in (1, 4)]
    assert runs[0].history["train"] == pytest.approx(runs[1].history["train"], rel=1e-12)
    assert runs[0].history["gradient_norm"] == pytest.approx(runs[1].history["gradient_norm"], rel=1e-6)


def test_masked_elements_do_not_count() -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(1.0))

        def model(self, x: torch.Tensor) -> None:
            seen = ~x.isnan()
            with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(self.w, 1.0, validate_args=False), obs=torch.where(seen, x, 0.0))
                bad = torch.where(seen, 0.0, float("nan"))
                pyro.sample("y", dist.Normal(self.w.detach() + bad, 1.0, validate_args=False), obs=torch.zeros(len(x)))

        def guide(self, x: torch.Tensor) -> None:
            pass

    x = torch.randn(10)
    x[2] = float("nan")
    assert fit(Masked(), x, epochs=1).epochs == 1


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_nan_in_validation_is_named_and_training_goes_on() -> None:
    held_out = torch.randn(5)
    held_out[0] = float("nan")
    with pytest.warns(RuntimeWarning, match=r"validation: the bound of epoch 1 is NaN: .*batch holds 1 of 5 values"):
        run = fit(Chain(), torch.randn(20), epochs=2, validation=held_out)
    assert run.epochs == 2 and run.best is None
    assert all(bound != bound for bound in run.history["validation"])
