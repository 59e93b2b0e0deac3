"""Callbacks after each step, and a limit on the number of steps."""

from __future__ import annotations

import pytest
import torch

import pyro_dgm
from pyro_dgm.infer import Callback
from tests.infer.train.fit_programs import digits_like, small_vae


def fit(vae, **more):
    options = {"epochs": 3, "batch_size": 20, "seed": 0, "progress": False, "compile": False}
    return pyro_dgm.fit(vae, digits_like(), **{**options, **more})


class Steps(Callback):
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def on_step_end(self, run):
        self.numbers.append(run.steps)


@pytest.mark.parametrize("depth", [False, "graph"])
def test_each_step_is_told(depth):
    steps = Steps()
    fit(small_vae(), callbacks=[steps], compile=depth)
    assert steps.numbers == list(range(1, 13))


@pytest.mark.parametrize("depth", [False, "graph"])
def test_what_a_callback_changes_between_steps_counts(depth):
    class Freeze(Callback):
        def on_step_end(self, run):
            for p in run.program.parameters():
                p.requires_grad_(run.steps < 5)
            if run.steps >= 5:
                run.optimizer.param_groups[0]["lr"] = 0.0
            for p in run.program.parameters():
                p.requires_grad_(True)

    vae = small_vae()
    run = fit(vae, max_steps=5, epochs=None)
    frozen = small_vae()
    fit(frozen, callbacks=[Freeze()], compile=depth)
    assert run.steps == 5
    for a, b in zip(vae.parameters(), frozen.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_max_steps_stops_in_the_middle_of_an_epoch():
    whole = fit(small_vae())
    part = fit(small_vae(), max_steps=6)
    assert (part.steps, part.epochs, part.stop_reason) == (6, 2, "max_steps=6")
    assert part.history["train"][0] == whole.history["train"][0]
    assert part.history["train"][1] != whole.history["train"][1]


def test_max_steps_at_the_end_of_an_epoch():
    part = fit(small_vae(), max_steps=8)
    assert (part.steps, part.epochs) == (8, 2)
    assert part.history["train"] == fit(small_vae(), epochs=2).history["train"]


@pytest.mark.parametrize("first", [4, 6, 8])
def test_a_run_with_more_steps_goes_on_as_if_it_had_not_stopped(first, tmp_path):
    whole = fit(small_vae())
    fit(small_vae(), max_steps=first, checkpoint_dir=tmp_path)
    resumed = fit(small_vae(), checkpoint_dir=tmp_path, resume=True)
    assert resumed.history["train"] == whole.history["train"]
    assert resumed.steps == whole.steps and resumed.stop_reason == ""
    for a, b in zip(whole.program.parameters(), resumed.program.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_same_limit_again_trains_no_more(tmp_path):
    fit(small_vae(), max_steps=6, checkpoint_dir=tmp_path)
    again = fit(small_vae(), max_steps=6, checkpoint_dir=tmp_path, resume=True)
    assert again.steps == 6 and again.stop_reason == "max_steps=6"


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"epochs": None}, TypeError, "needs epochs, max_steps"),
        ({"max_steps": 0}, ValueError, "max_steps must be"),
        ({"max_steps": 2.5}, TypeError, "max_steps must be"),
    ],
)
def test_bad_input(more, error, message):
    with pytest.raises(error, match=message):
        fit(small_vae(), **more)
