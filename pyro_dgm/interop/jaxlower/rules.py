"""The table of all rules, from an ATen overload to a function of JAX arrays."""

from __future__ import annotations

import functools

from pyro_dgm.interop.jaxlower.table import Rules

__all__ = ["lowerings"]


@functools.cache
def lowerings() -> Rules:
    """All rules.  The dictionary is the table itself: a rule put in it is used from then on.

    A result's dtype is set to what torch recorded afterwards, so that a rule need not know torch's promotion.
    """
    from pyro_dgm.interop.jaxlower import (
        creation,
        fourier,
        indexing,
        linear_algebra,
        networks,
        pointwise,
        reductions,
        special,
        views,
    )

    table: Rules = {}
    for part in (pointwise, special, reductions, creation, views, indexing, linear_algebra, networks, fourier):
        table.update(part.rules())
    return table
