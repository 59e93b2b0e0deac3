"""Where the numbers of a training run go: CSV always, TensorBoard, Weights & Biases and MLflow where installed.

A logger is any object with the two methods of :class:`Logger`.  :func:`pyro_dgm.fit` calls ``log`` after each epoch
with the epoch's number, bounds (nats per datum), gradient norm, learning rate and seconds, and ``close`` at its end.
One that has ``resume(step)`` too is told where a resumed run goes on, so that what came after is not there twice; one
that has ``check()`` is asked before training whether it can log.
"""

from __future__ import annotations

import csv
import importlib
import io
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pyro_dgm.infer.train.checkpoints.saved_files import replace_file, with_reason

__all__ = ["CSVLogger", "Logger", "MLflowLogger", "TensorBoardLogger", "WandbLogger", "as_loggers"]


@runtime_checkable
class Logger(Protocol):
    """What takes metrics."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Take numbers by name, as they are after ``step`` optimiser steps."""

    def close(self) -> None:
        """Write out what is buffered; called when training ends, however it ends."""


class CSVLogger:
    """A row for each call in a CSV file, with the step in the first column.

    :func:`pyro_dgm.fit` writes one by itself where it is given a ``checkpoint_dir``: ``metrics.csv`` in that folder.

    :param path: the file; rows are added to what it holds.  Floats are written so that they come back to the bit.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from pyro_dgm.infer.train.loggers import CSVLogger
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = CSVLogger(Path(folder) / "metrics.csv")
        ...     logger.log({"epoch": 1.0, "train": -20.5}, step=10)
        ...     print(logger.path.read_text().split())
        ['step,epoch,train', '10,1,-20.5']
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add a row; new columns are added to the whole file."""
        row = {"step": str(step), **{key: _shown(value) for key, value in metrics.items()}}
        columns, rows = self._read()
        if not set(row) <= set(columns):
            self._write([*columns, *(key for key in row if key not in columns)], [*rows, row])
            return
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
        except OSError as error:
            raise with_reason(error, f"{self.path} could not be written: {error.strerror or error}") from error

    def resume(self, step: int) -> None:
        """Drop the rows after a step, and one that a killed process left unfinished."""
        columns, rows = self._read()
        if columns:
            self._write(columns, [row for row in rows if int(row["step"]) <= step])

    def close(self) -> None:
        """Nothing is buffered."""

    def check(self) -> None:
        """Check the content of the file.

        :raises ValueError: if it is no table of steps.
        """
        self._read()

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self.path.is_file():
            return [], []
        try:
            lines = self.path.read_bytes().decode("utf-8").splitlines(keepends=True)
            if any("\0" in line for line in lines):
                raise ValueError("it holds NUL bytes")
            reader = csv.DictReader(line for line in lines if line.endswith("\n"))
            columns, rows = list(reader.fieldnames or []), list(reader)
            for row in rows:
                int(row["step"])
                if None in row or None in row.values():
                    raise ValueError(f"the row of step {row['step']} has not {len(columns)} columns")
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            reason = "it has no column 'step'" if isinstance(error, KeyError) else error
            message = f"{self.path} is damaged ({reason}): mend it, or move it away to begin a new one"
            raise ValueError(message) from error
        return columns, rows

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.path, text.getvalue().encode())


class TensorBoardLogger:
    """Scalars for TensorBoard, by :class:`torch.utils.tensorboard.SummaryWriter`.

    A resumed run hides what an earlier one logged after the step that it goes on from.

    :param directory: folder of the event files.
    :param prefix: put before each name: ``"fit/"`` makes a group of them.
    :raises ImportError: before training, if ``tensorboard`` is not installed.

    Example::

        >>> from pyro_dgm.infer.train.loggers import TensorBoardLogger
        >>> TensorBoardLogger("runs/a/tensorboard", prefix="fit/").prefix
        'fit/'
    """

    def __init__(self, directory: str | Path, prefix: str = "") -> None:
        self.directory, self.prefix = Path(directory), prefix
        self._writer: Any = None
        self._purge: int | None = None

    def resume(self, step: int) -> None:
        """Go on after a step."""
        self._purge = step + 1

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add a scalar for each."""
        if self._writer is None:
            self._writer = self._open()
        for key, value in metrics.items():
            self._writer.add_scalar(self.prefix + key, value, step)

    def check(self) -> None:
        """Look for TensorBoard.

        :raises ImportError: if it is not installed.
        """
        _need(self, "torch.utils.tensorboard", "TensorBoard: pip install tensorboard")

    def _open(self) -> Any:
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.directory), purge_step=self._purge)

    def close(self) -> None:
        """Write the events out."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbLogger:
    """Metrics for Weights & Biases.

    To have a resumed fit go on with the run, give its ``id`` and ``resume="allow"``.

    :param options: arguments of ``wandb.init``: ``project``, ``name``, ``dir``, ``mode="offline"``, ``id``, ...
    :raises ImportError: before training, if ``wandb`` is not installed.

    Example::

        >>> from pyro_dgm.infer.train.loggers import WandbLogger
        >>> WandbLogger(project="vae", mode="offline").options["project"]
        'vae'
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self._run: Any = None

    def check(self) -> None:
        """Look for Weights & Biases.

        :raises ImportError: if it is not installed.
        """
        _need(self, "wandb", "Weights & Biases: pip install wandb")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log all at one step."""
        if self._run is None:
            self.check()
            import wandb

            self._run = wandb.init(**self.options)
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


class MLflowLogger:
    """Metrics for an MLflow run of its own.

    To have a resumed fit go on with the run, give its ``run_id``.

    :param experiment: name of the experiment, made if need be.
    :param tracking_uri: a server, or a local store (``"sqlite:///mlruns.db"``); by default what MLflow is set to.
    :param run_id: a run to go on with.
    :param run_name: name of a new run.
    :raises ImportError: before training, if ``mlflow`` is not installed.

    Example::

        >>> from pyro_dgm.infer.train.loggers import MLflowLogger
        >>> MLflowLogger("digits", tracking_uri="sqlite:///mlruns.db").experiment
        'digits'
    """

    def __init__(
        self,
        experiment: str = "pyro_dgm",
        tracking_uri: str | None = None,
        run_id: str | None = None,
        run_name: str | None = None,
    ) -> None:
        self.experiment, self.tracking_uri, self.run_id, self.run_name = experiment, tracking_uri, run_id, run_name
        self._client: Any = None

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log each at the step."""
        if self._client is None:
            self._open()
        for key, value in metrics.items():
            self._client.log_metric(self.run_id, key, value, step=step)

    def check(self) -> None:
        """Look for MLflow.

        :raises ImportError: if it is not installed.
        """
        _need(self, "mlflow.tracking", "MLflow: pip install mlflow (or mlflow-skinny)")

    def _open(self) -> None:
        self.check()
        from mlflow.tracking import MlflowClient

        # A client of its own leaves the caller's active run and tracking address alone.
        self._client = MlflowClient(tracking_uri=self.tracking_uri)
        if self.run_id is None:
            found = self._client.get_experiment_by_name(self.experiment)
            experiment = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
            self.run_id = self._client.create_run(experiment, run_name=self.run_name).info.run_id
        else:
            self._client.update_run(self.run_id, status="RUNNING")

    def close(self) -> None:
        """Mark the run as finished."""
        if self._client is not None:
            self._client.set_terminated(self.run_id)
            self._client = None


def as_loggers(loggers: Any) -> list[Logger]:
    """One logger or a sequence of them as a list.

    :raises TypeError: for an object without ``log`` and ``close``.
    """
    found = list(loggers) if isinstance(loggers, (list, tuple)) else [loggers]
    for logger in found:
        if isinstance(logger, type) or not isinstance(logger, Logger):
            what = f"the class {logger.__name__} itself" if isinstance(logger, type) else type(logger).__name__
            raise TypeError(f"loggers must hold objects with log(metrics, step) and close(), got {what}")
    return found


def _need(logger: Any, module: str, what: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{type(logger).__name__} needs {what}") from error


def _shown(value: float) -> str:
    value = float(value)
    return str(int(value)) if value and value.is_integer() and abs(value) < 2**53 else repr(value)
