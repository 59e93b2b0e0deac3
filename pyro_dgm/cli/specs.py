"""What users write on the command line, read into objects: objectives, rows, family options."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from pyro_dgm.cli.errors import UsageError, bad_usage_if_raised

__all__ = ["parse_objective", "parse_rows", "parse_settings", "split_call"]


def split_call(spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    """``"Name"``, ``"Name(5)"`` or ``"Name(alpha=0.5)"`` to name, positional and named arguments; literals only.

    >>> split_call("RenyiELBO(5, alpha=0.5)")
    ('RenyiELBO', [5], {'alpha': 0.5})
    """
    problem = f"{spec!r} is not of the form Name, Name(5) or Name(alpha=0.5, num_particles=5)"
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise UsageError(problem)
        named = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
        if len(named) != len(node.keywords):
            raise UsageError(problem)
        return node.func.id, [ast.literal_eval(a) for a in node.args], named
    except (SyntaxError, ValueError) as error:
        raise UsageError(problem) from error


def parse_objective(spec: str, num_particles: int | None = None) -> Any:
    """An objective by its name and arguments, of which the number of particles comes first."""
    from pyro_dgm.infer import OBJECTIVES

    name, args, named = split_call(spec)
    if name not in OBJECTIVES:
        raise UsageError(f"there is no objective {name!r}; there are {', '.join(sorted(OBJECTIVES))}")
    if num_particles is not None:
        named.setdefault("num_particles", num_particles)
    with bad_usage_if_raised(f"objective {spec!r}"):
        return OBJECTIVES[name](*args, **named)


def parse_rows(spec: str, length: int) -> list[int]:
    """Row numbers ``"0,3,7"``, ranges ``"0:8"`` (the end is not in it), or both: ``"0:4,10"``.

    >>> parse_rows("0:3,10", length=20)
    [0, 1, 2, 10]
    """
    rows: list[int] = []
    for part in spec.split(","):
        try:
            if ":" in part:
                start, stop = part.split(":")
                rows += range(int(start or 0), int(stop) if stop else length)
            else:
                rows.append(int(part))
        except ValueError as error:
            raise UsageError(f"--rows: {part!r} is neither a row number nor a range such as 0:8") from error
    if not rows:
        raise UsageError(f"--rows: {spec!r} names no row")
    wrong = [r for r in rows if not 0 <= r < length]
    if wrong:
        raise UsageError(f"--rows: {wrong[0]} is not among the rows 0 to {length - 1}")
    return rows


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs, the value as JSON, or a string where it is none.

    >>> parse_settings(["hidden=[64, 64]", "network=conv", "isotropic=true"])
    {'hidden': [64, 64], 'network': 'conv', 'isotropic': True}
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.isidentifier():
            raise UsageError(f"--set: {pair!r} is not of the form KEY=VALUE")
        try:
            settings[key] = json.loads(text)
        except json.JSONDecodeError:
            settings[key] = text
    return settings
