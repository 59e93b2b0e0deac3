"""The user's own data: a table in a file of comma-separated values, or an array of NumPy."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_dgm.cli.data import Data
from pyro_dgm.cli.errors import UsageError

__all__ = ["SUFFIXES", "Standardization", "Table", "load_file", "read_table"]

SUFFIXES = (".csv", ".tsv", ".npy", ".npz")
#: names of the array to take from an .npz file that holds several
ARRAYS = ("x", "data", "train")
#: rows that a split into training, validation and test data needs at least
FEWEST_ROWS = 10
DELIMITERS = ",;\t|"


@dataclass
class Table:
    """Rows of numbers, ``(N, ...)``; columns have names where there are two dimensions."""

    values: Any
    columns: tuple[str, ...]


@dataclass
class Standardization:
    """What was subtracted from the data, and what they were divided by then: of each column, or of all elements."""

    loc: Any
    scale: Any

    def undo(self, x: Any) -> Any:
        """Standardised data in the units of the file."""
        return x * self.scale.to(x) + self.loc.to(x)

    def log_scale(self, num_elements: int) -> float:
        """What a log-density of standardised data is higher by than that in the units of the file, nats."""
        logs = self.scale.log()
        return float(logs.sum() if logs.dim() else num_elements * logs)

    def config(self) -> dict[str, Any]:
        """For JSON."""
        return {"loc": self.loc.tolist(), "scale": self.scale.tolist()}


def load_file(path: Path, columns: Sequence[str] | None, standardize: bool | None, num_validation: int | None) -> Data:
    """Rows of a file, in an order drawn once, as training, validation and test data.

    :param columns: names of the columns to take; ``None`` for all.
    :param standardize: subtract the mean of the training data and divide by their standard deviation, of each column
        of a table and of all elements of other arrays; ``None`` does so unless all values are 0 or 1.
    :param num_validation: rows for validation; ``None`` for a tenth. Another tenth is for the test.
    :raises UsageError: for a file that is no table of finite numbers, or that is too short.
    """
    import torch

    table = read_table(path, columns)
    x = torch.from_numpy(table.values)
    num = len(x)
    if num < FEWEST_ROWS:
        raise UsageError(f"{path} has {num} rows; at least {FEWEST_ROWS} are needed")
    num_test = max(1, num // 10)
    num_validation = max(1, num // 10) if num_validation is None else num_validation
    if num_test + num_validation > num - 2:
        raise UsageError(f"--num-validation {num_validation} leaves nothing to train on: {path} has {num} rows")
    x = x[torch.randperm(num, generator=torch.Generator().manual_seed(0))]
    train = x[num_test + num_validation :]
    if standardize is None:
        standardize = not bool(((x == 0) | (x == 1)).all())
    done = None
    if standardize:
        loc, scale = (train.mean(0), train.std(0)) if x.dim() == 2 else (train.mean(), train.std())
        done = Standardization(loc, torch.where(scale > 0, scale, torch.ones_like(scale)))
        x = (x - done.loc) / done.scale
    x = x.to(torch.get_default_dtype())
    test, validation, train = x.tensor_split([num_test, num_test + num_validation])
    each = "each column" if x.dim() == 2 else "all elements together"
    how = f"standardised by mean and standard deviation of {each} (training data)" if standardize else "as they are"
    return Data(
        name=path.name,
        train=train,
        validation=validation if num_validation else None,
        test=test,
        test_labels=None,
        event_shape=tuple(x.shape[1:]),
        transform=None,
        note=f"{path}: {num} rows of {_shape_text(table)}, {how}",
        columns=table.columns,
        standardization=done,
    )


def _shape_text(table: Table) -> str:
    if table.columns:
        return f"{len(table.columns)} columns ({', '.join(table.columns)})" if len(table.columns) < 8 else (
            f"{len(table.columns)} columns ({table.columns[0]} to {table.columns[-1]})"
        )  # fmt: skip
    return f"shape {tuple(table.values.shape[1:])}"


def read_table(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Read a file.

    :param columns: names of the columns to take, in this order.
    :raises FileNotFoundError: if there is none.
    :raises UsageError: for another kind of file, or one that holds what is no finite number; with row and column.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--data must end in {', '.join(SUFFIXES)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return _read_csv(path, columns) if path.suffix in (".csv", ".tsv") else _read_numpy(path, columns)


def _chosen(path: Path, names: Sequence[str], columns: Sequence[str] | None) -> list[int]:
    """Indices of the columns to take."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UsageError(f"{path} has two columns named {twice[0]!r}")
    for name in columns or ():
        if name not in names:
            raise UsageError(f"--columns: {path} has no column {name!r}; it has {', '.join(names)}")
    return list(range(len(names))) if not columns else [list(names).index(name) for name in columns]


# Comma-separated values


def _read_csv(path: Path, columns: Sequence[str] | None) -> Table:
    import numpy as np

    try:
        lines = _lines(path)
        _, first = next(lines, (0, []))
        if not first:
            raise UsageError(f"{path} is empty")
        header = not all(_is_number(cell) for cell in first)
        names = [cell.strip() for cell in first] if header else [f"x{i}" for i in range(len(first))]
        chosen = _chosen(path, names, columns)
        found = array("d")
        for row, (line, cells) in enumerate(lines if header else _with_first(first, lines), start=1):
            if len(cells) != len(names):
                raise UsageError(f"{path}, line {line}: {len(cells)} cells, where the first line has {len(names)}")
            found.extend(_number(cells[i], path, row, line, names[i]) for i in chosen)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8: {error}") from error
    except csv.Error as error:
        raise UsageError(f"{path} is no file of comma-separated values: {error}") from error
    return Table(np.array(found).reshape(-1, len(chosen)), tuple(names[i] for i in chosen))


def _with_first(first: list[str], lines: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield 1, first
    yield from lines


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Cells of each line that is not blank, and its number."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        start = file.readline()
        delimiter = "\t" if path.suffix == ".tsv" else max(DELIMITERS, key=start.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return not cell.strip()  # a missing value is no name
    return True


def _number(cell: str, path: Path, row: int, line: int, column: str) -> float:
    try:
        value = float(cell)
        if math.isfinite(value):
            return value
        problem = f"{cell.strip()} is not finite"
    except ValueError:
        problem = f"{cell.strip()!r} is no number" if cell.strip() else "the cell is empty"
    raise UsageError(
        f"{path}, row {row} (line {line}), column {column!r}: {problem}. Correct it, or name the columns to take: "
        "--columns a,b"
    )


# NumPy


def _read_numpy(path: Path, columns: Sequence[str] | None) -> Table:
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            names = loaded.files
            wanted = [name for name in ARRAYS if name in names] if len(names) > 1 else names
            if not wanted:
                there = ", ".join(names) or "none"
                raise UsageError(f"{path} holds the arrays {there}: name the one to take {' or '.join(ARRAYS)}")
            loaded = loaded[wanted[0]]
    except (ValueError, OSError, EOFError) as error:  # no array, one of objects, or a file cut short
        raise UsageError(f"{path} cannot be read as an array of numbers: {error}") from error
    if loaded.dtype.kind not in "biuf" or loaded.ndim == 0:
        raise UsageError(f"{path} must hold an array of real numbers, got {loaded.dtype} of shape {loaded.shape}")
    values = loaded.astype("float64")
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim > 2:
        if columns:
            raise UsageError(f"--columns is of tables: {path} holds an array of shape {values.shape}")
        names = ()
    else:
        names = tuple(f"x{i}" for i in range(values.shape[1]))
        chosen = _chosen(path, names, columns)
        names, values = tuple(names[i] for i in chosen), values[:, chosen]
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, *rest = wrong[0].tolist()
        where = f"column {names[rest[0]]!r}" if names else f"element {tuple(rest)}"
        raise UsageError(f"{path}, row {row + 1}, {where}: {values[tuple(wrong[0])]} is not finite")
    return Table(values, names)
