"""Loggers: what they are given, what they write, and that a resumed run writes nothing twice."""

from __future__ import annotations

import csv
import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import pyro_dgm
from pyro_dgm.cli.main import app
from pyro_dgm.infer.train.loggers import CSVLogger, Logger, MLflowLogger, TensorBoardLogger, WandbLogger
from tests.infer.train.fit_programs import digits_like, small_vae

fit = functools.partial(pyro_dgm.fit, progress=False, device="cpu")


class Kept:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def close(self) -> None:
        self.closed += 1


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_logger_is_given_each_epoch_and_closed() -> None:
    kept = Kept()
    x = digits_like(40)
    run = fit(small_vae(), x, epochs=3, batch_size=16, validation=x, seed=0, loggers=kept)
    assert isinstance(kept, Logger) and kept.closed == 1
    assert [step for step, _ in kept.rows] == [3, 6, 9]
    for i, (_, metrics) in enumerate(kept.rows):
        assert metrics == {"epoch": i + 1, **{key: values[i] for key, values in run.history.items()}}


def test_a_logger_is_closed_after_an_error_too() -> None:
    kept = Kept()

    def fail(run: Any) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fit(small_vae(), digits_like(), epochs=3, loggers=[kept], callbacks=[fail])
    assert kept.closed == 1 and len(kept.rows) == 1


@pytest.mark.parametrize("bad", [3, [3], Kept, "tensorboard", lambda metrics, step: None])
def test_what_is_no_logger(bad: Any) -> None:
    with pytest.raises(TypeError, match="loggers must hold objects with log"):
        fit(small_vae(), digits_like(), epochs=1, loggers=bad)


# CSV


def test_checkpoints_come_with_a_table(tmp_path: Path) -> None:
    run = fit(small_vae(), digits_like(40), epochs=3, batch_size=16, seed=0, checkpoint_dir=tmp_path)
    rows = read(tmp_path / "metrics.csv")
    assert list(rows[0]) == ["step", "epoch", "train", "gradient_norm", "learning_rate", "seconds"]
    for key in ("train", "gradient_norm", "learning_rate", "seconds"):
        assert [float(row[key]) for row in rows] == run.history[key]  # to the bit
    assert [row["step"] for row in rows] == ["3", "6", "9"]


def test_a_resumed_run_has_each_epoch_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "seed": 0, "checkpoint_dir": tmp_path, "checkpoint_every": 2}

    def fail(run: Any) -> None:
        if run.epochs == 5:
            raise RuntimeError("a crash, one epoch after the last checkpoint")

    with pytest.raises(RuntimeError, match="a crash"):
        fit(small_vae(), digits_like(40), epochs=7, callbacks=[fail], **options)
    table = tmp_path / "metrics.csv"
    assert [row["epoch"] for row in read(table)] == ["1", "2", "3", "4", "5"]
    table.write_text(table.read_text() + "18,6,-9.")  # a row that was being written
    run = fit(small_vae(), digits_like(40), epochs=7, callbacks=[lambda run: None], resume=True, **options)
    rows = read(table)
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 8)]
    assert [float(row["train"]) for row in rows] == run.history["train"]


def test_rows_of_a_run_that_left_no_checkpoint_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,train\n3,1,-5.0\n")
    (tmp_path / "metrics-1.csv").write_text("older")
    with pytest.warns(UserWarning, match=r"metrics.csv is of an earlier run .* now metrics-2.csv"):
        fit(small_vae(), digits_like(40), epochs=1, checkpoint_dir=tmp_path, resume=True)
    assert (tmp_path / "metrics-1.csv").read_text() == "older"
    assert read(tmp_path / "metrics-2.csv")[0]["train"] == "-5.0"
    assert len(read(tmp_path / "metrics.csv")) == 1 and read(tmp_path / "metrics.csv")[0]["step"] == "1"


def test_columns_that_come_later(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "new" / "m.csv")
    logger.log({"a": 1.5}, 1)
    logger.log({"b": float("nan"), "a": 0.1 + 0.2}, 2)
    logger.log({"a": -1e300}, 3)
    rows = read(logger.path)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["a"] for row in rows] == ["1.5", "0.30000000000000004", "-1e+300"]
    assert [row["b"] for row in rows] == ["", "nan", ""]
    logger.resume(2)
    assert len(read(logger.path)) == 2
    assert [p.name for p in logger.path.parent.iterdir()] == ["m.csv"]


# The others


@pytest.mark.parametrize(
    ("package", "logger"),
    [
        ("tensorboard", lambda folder: TensorBoardLogger(folder)),
        ("wandb", lambda folder: WandbLogger(mode="offline", dir=str(folder))),
        ("mlflow", lambda folder: MLflowLogger(tracking_uri=folder.as_uri())),
    ],
)
def test_a_package_that_is_missing_is_named(package: str, logger: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    made = logger(tmp_path)
    made.close()  # of a logger that never logged there is nothing to close
    with pytest.raises(ImportError, match=f"pip install {package}"):
        made.log({"train": 1.0}, 1)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars() -> list[tuple[int, float]]:
        found = EventAccumulator(str(tmp_path / "events"))
        found.Reload()
        return [(event.step, event.value) for event in found.Scalars("fit/train")]

    options: dict[str, Any] = {"batch_size": 16, "seed": 0, "checkpoint_dir": tmp_path / "c", "checkpoint_every": 2}

    def fail(run: Any) -> None:
        if run.epochs == 3:
            raise RuntimeError("a crash")

    with pytest.raises(RuntimeError, match="a crash"):
        fit(
            small_vae(), digits_like(40), epochs=4, callbacks=[fail],
            loggers=TensorBoardLogger(tmp_path / "events", "fit/"), **options,
        )  # fmt: skip
    assert [step for step, _ in scalars()] == [3, 6, 9]
    run = fit(
        small_vae(), digits_like(40), epochs=4, callbacks=[lambda run: None], resume=True,
        loggers=TensorBoardLogger(tmp_path / "events", "fit/"), **options,
    )  # fmt: skip
    assert [step for step, _ in scalars()] == [3, 6, 9, 12]
    assert [value for _, value in scalars()] == pytest.approx(run.history["train"], rel=1e-6)


def test_the_commands_option(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fit", "--log", "tensorbored", "--output", str(tmp_path / "run")])
    assert result.exit_code == 2 and "is not one of tensorboard, wandb, mlflow" in result.output
    assert not (tmp_path / "run").exists()


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(
        small_vae(), digits_like(40), epochs=2, seed=0,
        loggers=WandbLogger(project="pyro_dgm", mode="offline", dir=str(tmp_path)),
    )  # fmt: skip
    files = list(tmp_path.rglob("*.wandb"))
    assert len(files) == 1 and files[0].stat().st_size > 0


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the one store that mlflow-skinny has
    from mlflow.tracking import MlflowClient

    address = (tmp_path / "mlruns").as_uri()
    logger = MLflowLogger("digits", tracking_uri=address, run_name="a")
    run = fit(small_vae(), digits_like(40), epochs=3, batch_size=16, seed=0, loggers=logger)
    again = MLflowLogger("digits", tracking_uri=address, run_id=logger.run_id)
    again.log({"train": torch.pi}, 12)
    again.close()
    client = MlflowClient(tracking_uri=address)
    found = sorted(client.get_metric_history(logger.run_id, "train"), key=lambda metric: metric.step)
    assert [metric.step for metric in found] == [3, 6, 9, 12]
    assert [metric.value for metric in found] == [*run.history["train"], torch.pi]
    assert client.get_run(logger.run_id).info.status == "FINISHED"
