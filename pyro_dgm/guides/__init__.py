"""Variational families for any model: amortised, hierarchical, implicit, from flows."""

from pyro_dgm.guides.amortized import Amortized
from pyro_dgm.guides.amortized_flow import AmortizedFlow
from pyro_dgm.guides.amortized_von_mises_fisher import AmortizedVonMisesFisher
from pyro_dgm.guides.deterministic import Deterministic
from pyro_dgm.guides.flow import FlowGuide
from pyro_dgm.guides.implicit import Implicit

__all__ = ["Amortized", "AmortizedFlow", "AmortizedVonMisesFisher", "Deterministic", "FlowGuide", "Implicit"]
