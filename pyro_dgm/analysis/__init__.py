"""Analysis of programs and of what inference gives: ArviZ conversion, estimator comparison, likelihood estimates.

Nothing heavy (ArviZ, pandas, matplotlib) is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "ActiveUnits": "units",
    "Comparison": "comparison",
    "ELBOSurgery": "surgery",
    "EnergyComparison": "energy_comparison",
    "LogLikelihood": "likelihood",
    "LogLikelihoodBracket": "annealed",
    "MutualInformation": "information",
    "active_units": "units",
    "compare_elbos": "compare",
    "compare_energies": "energies",
    "elbo_surgery": "surgery",
    "log_likelihood": "likelihood",
    "mutual_information": "information",
    "to_arviz": "convert",
}

__all__ = [*_NAMES, "arviz_adapter"]

if TYPE_CHECKING:
    from pyro_dgm.analysis import arviz_adapter
    from pyro_dgm.analysis.annealed import LogLikelihoodBracket
    from pyro_dgm.analysis.compare import compare_elbos
    from pyro_dgm.analysis.comparison import Comparison
    from pyro_dgm.analysis.convert import to_arviz
    from pyro_dgm.analysis.energies import compare_energies
    from pyro_dgm.analysis.energy_comparison import EnergyComparison
    from pyro_dgm.analysis.information import MutualInformation, mutual_information
    from pyro_dgm.analysis.likelihood import LogLikelihood, log_likelihood
    from pyro_dgm.analysis.surgery import ELBOSurgery, elbo_surgery
    from pyro_dgm.analysis.units import ActiveUnits, active_units


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"pyro_dgm.analysis.{_NAMES[name]}"), name)
    elif name == "arviz_adapter":
        value = importlib.import_module("pyro_dgm.analysis.arviz_adapter")
    else:
        raise AttributeError(f"module 'pyro_dgm.analysis' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
