"""Tables of results: rows of named values, as text, in the terminal and in pandas."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = ["ResultTable", "as_text", "plus_minus", "text_table"]


class ResultTable:
    """A table of results: print it, take a row by its name or number, or the whole as a data frame.

    A subclass names the column :attr:`index`, and may give ``__rich__``, what is printed.

    :ivar rows: mappings from column to value, in the order in which their subjects were given.
    :raises KeyError: in use, for a name that no row has.

    Example::

        >>> from pyro_dgm.ops import ResultTable
        >>> class Scores(ResultTable):
        ...     index = "who"
        >>> scores = Scores([{"who": "a", "score": 1.5}, {"who": "b", "score": 2.0}])
        >>> scores["b"]["score"], len(scores)
        (2.0, 2)
    """

    #: the column that has the rows' names
    index: ClassVar[str]

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = list(rows)

    def __getitem__(self, name: str | int) -> dict[str, Any]:
        if isinstance(name, int):
            return self.rows[name]
        for row in self.rows:
            if row[self.index] == name:
                return row
        raise KeyError(f"no {self.index} {name!r}; there are {[row[self.index] for row in self.rows]}")

    def __len__(self) -> int:
        return len(self.rows)

    def to_frame(self) -> Any:
        """The table as a :class:`pandas.DataFrame`, indexed by the rows' names."""
        import pandas

        return pandas.DataFrame(self.rows).set_index(self.index)

    def __str__(self) -> str:
        return as_text(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[row[self.index] for row in self.rows]})"


def as_text(renderable: Any, width: int = 100) -> str:
    """What rich makes of it, without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def text_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", left: int = 1
) -> Any:
    """A :class:`rich.table.Table` of strings; the first ``left`` columns are text, the others numbers."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", caption=caption or None, caption_justify="left",
        box=box.SIMPLE_HEAD, padding=(0, 1),
    )  # fmt: skip
    for i, column in enumerate(columns):
        if i < left:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def plus_minus(value: float, error: float, digits: int = 2) -> str:
    """``-17.29 ± 0.01``."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"
