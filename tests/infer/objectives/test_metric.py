"""Every objective's value has a name, a unit and a direction, and what looks for the best goes by them."""

from __future__ import annotations

import functools
import inspect
import io
from pathlib import Path
from typing import Any

import pyro.infer
import pytest
import torch
from rich.console import Console

import pyro_dgm
from pyro_dgm import infer
from pyro_dgm.infer.objectives.metric import BOUND, LOSS, Metric, metric_of
from pyro_dgm.infer.train.callbacks import EarlyStopping
from pyro_dgm.infer.train.progress import ProgressBar
from tests.infer.train.checkpoints.test_damage import data, linear

OBJECTIVES = [
    c
    for c in (getattr(infer, name) for name in infer.__all__)
    if isinstance(c, type)
    and issubclass(c, pyro.infer.elbo.ELBO)
    and not inspect.isabstract(c)
    and c is not infer.Phased
]
#: those that are no bound from below, and which way is better
DIRECTIONS = {
    "CUBO": "lower", "ScoreMatching": "lower", "SlicedScoreMatching": "lower", "DenoisingScoreMatching": "lower",
    "NoiseContrastive": "higher", "ContrastiveDivergence": None, "PersistentCD": None, "ShortRunML": None,
}  # fmt: skip


@pytest.mark.parametrize("cls", OBJECTIVES, ids=lambda c: c.__name__)
def test_every_objective_says_what_it_is(cls: Any) -> None:
    metric = metric_of(cls)
    assert isinstance(cls.metric, Metric) if cls is not infer.CapturedELBO else True
    assert metric.name and "per datum" in metric.unit
    if cls.__name__ in DIRECTIONS:
        assert metric.better == DIRECTIONS[cls.__name__] and metric.name != "bound"
    else:
        assert metric.better == "higher" and metric.unit == "nats per datum"
    side = getattr(cls, "side", "lower")
    assert (metric.name == "bound") == (side == "lower" and cls.__name__ not in DIRECTIONS)


def test_others() -> None:
    assert metric_of(pyro.infer.Trace_ELBO()) == metric_of(pyro.infer.RenyiELBO()) == BOUND
    assert metric_of(pyro.infer.ReweightedWakeSleep()) == metric_of(lambda model, guide: None) == LOSS
    assert metric_of(infer.CapturedELBO(infer.CUBO())).better == "lower"
    assert str(LOSS) == "loss (per datum, lower is better)"
    assert (LOSS.of(3.0), LOSS.gain(3.0)) == (3.0, -3.0) and (BOUND.of(3.0), BOUND.gain(-3.0)) == (-3.0, -3.0)
    with pytest.raises(ValueError, match="better must be 'higher', 'lower' or None, got 'up'"):
        Metric("x", better="up")


def distance(model: Any, guide: Any) -> Any:
    """A plain callable: the loss is a sum over the batch."""
    return lambda x: (guide.__self__.bias - x).square().sum()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def uphill(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, maximize=True)


def fit(objective: Any, epochs: int, optimizer: Any = sgd, **options: Any) -> Any:
    return pyro_dgm.fit(
        linear(), data(), objective=objective, epochs=epochs, optimizer=optimizer, seed=0, progress=False,
        device="cpu", **options,
    )  # fmt: skip


CUSTOM = [distance, infer.CUBO(num_particles=20), infer.ELBO(), pyro.infer.Trace_ELBO()]


@pytest.mark.parametrize("objective", CUSTOM, ids=lambda o: getattr(o, "__name__", type(o).__name__))
def test_best_is_by_direction(objective: Any, tmp_path: Path) -> None:
    run = fit(objective, 6, uphill, checkpoint_dir=tmp_path, validation=data())
    values, metric = run.history["validation"], run.measured["validation"]
    assert values[0] != values[-1] and (metric.better == "lower") == (values[-1] > values[0])
    assert run.best.value == (min if metric.better == "lower" else max)(values)
    assert run.best_checkpoint.name == f"epoch-{run.best.epoch:06d}"


def test_a_loss_is_shown_as_it_is() -> None:
    run = fit(distance, 1, batch_size=20)
    assert run.measured["train"] == LOSS
    assert run.history["train"] == [pytest.approx(((linear().bias - data()).square().sum() / 20).item(), rel=1e-5)]


@pytest.mark.parametrize("objective", CUSTOM, ids=lambda o: getattr(o, "__name__", type(o).__name__))
def test_early_stopping_is_by_direction(objective: Any) -> None:
    run = fit(objective, 30, uphill, early_stopping=3, validation=data())
    metric = run.measured["validation"]
    assert run.epochs == run.best.epoch + 3 and run.stop_reason == (
        f"no better validation {metric.name} in 3 epochs after epoch {run.best.epoch}"
    )


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_is_by_direction(mode: str) -> None:
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode=mode, patience=0)
    assert set(fit(distance, 5, lr_scheduler=plateau).history["learning_rate"]) == {0.1}
    assert fit(distance, 5, uphill, lr_scheduler=plateau).history["learning_rate"][-1] < 0.02


def rbm_fit(epochs: int = 3, **options: Any) -> Any:
    x = torch.randint(2, (20, 6), generator=torch.Generator().manual_seed(0)).float()
    torch.manual_seed(0)
    rbm = pyro_dgm.models.RBM(6, 3)
    if "validation" in options:
        options["validation"] = x
    return pyro_dgm.fit(
        rbm, x, objective=infer.ContrastiveDivergence(), epochs=epochs, seed=0, device="cpu",
        **{"progress": False, **options},
    )  # fmt: skip


def likelihood(model: Any, guide: Any) -> Any:
    """Minus the exact log-likelihood: a validation objective that says how good a machine is."""
    rbm = model.__self__
    return lambda x: -rbm.log_prob(x).sum() if hasattr(rbm, "log_prob") else rbm.distribution().log_prob(x).sum()


@pytest.mark.parametrize("options", [{}, {"validation": True}], ids=["train", "validation"])
def test_a_gap_has_no_best(options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pyro_dgm"):
        run = rbm_fit(checkpoint_dir=tmp_path, **options)
    assert run.best is None and run.best_checkpoint is None and not (tmp_path / "best").exists()
    said = [r.message for r in caplog.records if "no best epoch is kept" in r.message]
    assert len(said) == 1 and "energy gap of chains and data" in said[0]
    again = rbm_fit(4, checkpoint_dir=tmp_path, resume=True, **options)
    assert again.best is None and [p.name for p in tmp_path.glob("epoch-*")] == ["epoch-000004"]
    for bad in (
        {"early_stopping": 2},
        {"early_stopping": EarlyStopping(2, monitor="train")},
        {"callbacks": [EarlyStopping(2)]},
    ):
        with pytest.raises(ValueError, match="early_stopping watches the .* value, which here is the energy gap"):
            rbm_fit(**bad, **options)
    with pytest.raises(ValueError, match="ReduceLROnPlateau waits for a better value"):
        rbm_fit(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau, **options)


def test_a_gap_beside_a_validation_that_has_a_direction(tmp_path: Path) -> None:
    options = {"validation": True, "validation_objective": likelihood, "checkpoint_dir": tmp_path}
    run = rbm_fit(early_stopping=2, **options)
    assert run.measured["train"].better is None and run.measured["validation"] == LOSS
    assert run.best.value == min(run.history["validation"]) and run.best_checkpoint is not None
    with pytest.raises(ValueError, match="early_stopping watches the train value"):
        rbm_fit(early_stopping=EarlyStopping(2, monitor="train"), validation=True, validation_objective=likelihood)


@pytest.mark.parametrize(
    ("metric", "validation", "text"),
    [
        (BOUND, None, "bound -3.500  validation -4.250 nats"),
        (LOSS, None, "loss 3.500  validation -4.250"),
        (LOSS, BOUND, "loss 3.500  validation bound -4.250"),
    ],
)
def test_the_bar_has_the_name(metric: Metric, validation: Metric | None, text: str) -> None:
    out = io.StringIO()
    bar = ProgressBar(2, 3, metric, validation)
    bar._progress.live.console = Console(file=out, width=200)
    bar._last = -1.0
    with bar:
        bar.epoch(1, metric.of(3.5), -4.25)
        bar.step(2, 1, -3.5)
        assert bar._progress.tasks[0].fields["bounds"] == text
