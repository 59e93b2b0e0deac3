"""What is inside a distribution: the law that ``to_event``, masks and expansions are wrapped around."""

from __future__ import annotations

from typing import Any

__all__ = ["base_of"]


def base_of(fn: Any, through: Any = object) -> Any:
    """The distribution inside its wrappers.

    :param through: the classes of wrapper to look through; by default all that have a ``base_dist``, transformed
        distributions among them.
    """
    while isinstance(fn, through) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
