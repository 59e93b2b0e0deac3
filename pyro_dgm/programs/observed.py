"""What a site may be observed at: the first run of a model shows it, and a log-density would go wrong in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["check_observed"]


def check_observed(sites: Mapping[str, Any]) -> None:
    """Refuse observed values that are no dense tensors of real numbers, and integers that the site's law does not take.

    :param sites: sample sites of a trace by name.
    :raises TypeError: naming the site, what came, and how to convert it.
    """
    for name, site in sites.items():
        value = site["value"]
        if not site["is_observed"]:
            continue
        if isinstance(value, (np.ndarray, list, tuple)):
            raise TypeError(f"site {name!r} is observed at a {type(value).__name__}: give a tensor, torch.as_tensor(x)")
        if not isinstance(value, Tensor):
            continue
        if value.is_complex():
            raise TypeError(f"site {name!r} is observed at complex numbers ({value.dtype}), which have no density here")
        if value.layout != torch.strided:
            raise TypeError(f"site {name!r} is observed at a tensor of layout {value.layout}: give x.to_dense()")
        if not value.is_floating_point():
            _check_integers(name, site, value)


def _check_integers(name: str, site: Any, value: Tensor) -> None:
    try:
        site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    except RuntimeError as error:
        try:
            site["fn"].log_prob(value.to(torch.get_default_dtype()), *site["args"], **site["kwargs"])
        except (RuntimeError, ValueError):
            return  # not for its dtype: the evaluation says what is wrong
        raise TypeError(
            f"site {name!r} is observed at {value.dtype}, which {type(site['fn']).__name__} does not take: give "
            "x.float()"
        ) from error
