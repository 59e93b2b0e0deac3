"""Averages of the weights: against the formula, in validation and checkpoints, through a resumed run."""

from __future__ import annotations

import functools

import pytest
import torch

import pyro_dgm
from pyro_dgm.infer import EMA, SWA, Callback, load_weights
from tests.infer.train.fit_programs import digits_like, small_vae

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


class Path(Callback):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, run):
        self.steps.append(run.state.snapshot())


def fit(vae, averaging, *callbacks, epochs=3, **more):
    options = {"optimizer": ADAM, "batch_size": 20, "seed": 0, "progress": False, "compile": False}
    return pyro_dgm.fit(
        vae, digits_like(), epochs=epochs, averaging=averaging, callbacks=callbacks, **{**options, **more}
    )


def test_ema_is_the_recursion_over_the_steps():
    path, vae = Path(), small_vae()
    fit(vae, EMA(0.6), path)
    expected = path.steps[0]
    for t, weights in enumerate(path.steps[1:], start=1):
        decay = min(0.6, (1 + t) / (10 + t))
        expected = {k: decay * expected[k] + (1 - decay) * weights[k] for k in expected}
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_ema_without_warmup():
    path, vae = Path(), small_vae()
    fit(vae, EMA(0.9, warmup=False), path)
    expected = path.steps[0]
    for weights in path.steps[1:]:
        expected = {k: 0.9 * expected[k] + 0.1 * weights[k] for k in expected}
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_swa_is_the_mean_over_the_ends_of_epochs():
    path, vae = Path(), small_vae()
    run = fit(vae, SWA(start_epoch=2, every=2), path, epochs=6)
    ends = [path.steps[4 * epoch - 1] for epoch in (2, 4, 6)]
    assert run.averaging.count == 3
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, sum(e[name] for e in ends) / 3, rtol=1e-5, atol=1e-6)


def test_training_itself_is_unchanged_and_validation_has_the_average():
    held_out = digits_like(30, seed=8)
    plain = fit(small_vae(), None, validation=held_out)
    vae = small_vae()
    run = fit(vae, EMA(0.5), validation=held_out)
    assert run.history["train"] == plain.history["train"]
    assert run.history["validation"] != plain.history["validation"]
    again = pyro_dgm.fit(
        vae, digits_like(), epochs=1, batch_size=20, seed=0, progress=False, compile=False, validation=held_out,
        optimizer=functools.partial(torch.optim.SGD, lr=0.0),
    )  # fmt: skip
    assert again.history["validation"] == pytest.approx(run.history["validation"][-1:], rel=1e-6)


@pytest.mark.parametrize("averaging", [EMA(0.7), SWA(2)], ids=["EMA", "SWA"])
def test_a_resumed_run_has_the_same_average(averaging, tmp_path):
    whole, parts = small_vae(), small_vae()
    full = fit(whole, averaging, epochs=4)
    fit(parts, averaging, epochs=2, checkpoint_dir=tmp_path)
    saved = small_vae()
    load_weights(saved, tmp_path)
    for a, b in zip(saved.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)  # the checkpoint's weights are the average, as the program's are
    resumed = fit(small_vae(), averaging, epochs=4, checkpoint_dir=tmp_path, resume=True)
    assert resumed.history["train"] == full.history["train"]
    for a, b in zip(whole.parameters(), resumed.program.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("depth", ["graph", pytest.param("block", marks=pytest.mark.slow)])
def test_compiled_steps_are_averaged_alike(depth):
    eager, compiled = small_vae(), small_vae()
    fit(eager, EMA(0.7))
    run = fit(compiled, EMA(0.7), compile=depth)
    assert run.config["compile"] == ("step" if depth == "block" else depth)  # a block would hide its steps
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_early_stopping_restores_the_best_average():
    vae = small_vae()
    run = fit(vae, EMA(0.9), epochs=8, early_stopping=2, validation=digits_like(30, seed=8))
    best = max(run.history["validation"])
    again = pyro_dgm.fit(
        vae, digits_like(), epochs=1, batch_size=20, seed=0, progress=False, compile=False,
        validation=digits_like(30, seed=8), optimizer=functools.partial(torch.optim.SGD, lr=0.0),
    )  # fmt: skip
    assert again.history["validation"][0] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EMA(1.0), ValueError, "decay must be in"),
        (lambda: SWA(0), ValueError, "start_epoch must be"),
        (lambda: fit(small_vae(), 0.99), TypeError, "averaging must be EMA"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
