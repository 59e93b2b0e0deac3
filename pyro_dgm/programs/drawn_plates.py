"""Which plates of a program draw a mini-batch."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

__all__ = ["DrawnPlates"]


class DrawnPlates(Messenger):
    """Notes the plates that draw a mini-batch, rather than being given one or taking all, in :attr:`drawn` by name."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) and msg["value"] is None and fn.subsample_size not in (None, fn.size):
            self.drawn[msg["name"]] = fn
