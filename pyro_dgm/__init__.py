"""pyro_dgm: deep generative models as Pyro programs, with every inference method a part you plug in.

The rooms are loaded when first used, so that ``import pyro_dgm`` costs what ``import pyro`` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_ROOMS = ("analysis", "datasets", "distributions", "guides", "infer", "interop", "models", "nn", "ops", "recipes")
_NAMES = {
    "program": "pyro_dgm.programs",
    "Program": "pyro_dgm.programs",
    "fit": "pyro_dgm.infer.train.fit",
    "sample_posterior": "pyro_dgm.infer.sample",
    "compare_elbos": "pyro_dgm.analysis",
    "to_arviz": "pyro_dgm.analysis",
}

__all__ = ["__version__", *_ROOMS, *_NAMES]

if TYPE_CHECKING:
    from pyro_dgm import analysis, datasets, distributions, guides, infer, interop, models, nn, ops, recipes
    from pyro_dgm.analysis import compare_elbos, to_arviz
    from pyro_dgm.infer.sample import sample_posterior
    from pyro_dgm.infer.train.fit import fit
    from pyro_dgm.programs import Program, program


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"pyro_dgm.{name}")
    else:
        raise AttributeError(f"module 'pyro_dgm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
