"""Modules that have moved: their old names still import, with a warning that says the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "install"]

_TRAIN = {
    name: f"train.{name}"
    for name in ("callbacks", "distributed", "loggers", "nonfinite", "optimizers", "precision", "progress", "run")
}
#: old name within ``pyro_dgm.infer`` -> new one
MOVED = {
    **_TRAIN,
    "capture": "objectives.captured",
    "checkpoint": "train.checkpoints.checkpoint",
    "data": "train.batches",
    "elbo": "objectives",
    "energy": "objectives.energies",
    "metric": "objectives.metric",
}


class _Finder(MetaPathFinder, Loader):
    """Comes last: asked only for what no other finder has found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == "pyro_dgm.infer" and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module itself in the place of the one that was begun under the old name."""
        old = module.__name__
        new = f"pyro_dgm.infer.{MOVED[old.rpartition('.')[2]]}"
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


def install() -> None:
    """Make the old names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
