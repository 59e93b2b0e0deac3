"""What a program is: a model and a guide, their batches, structure and parameters."""

from pyro_dgm.programs.base import *  # noqa: F403
from pyro_dgm.programs.base import __all__ as __all__
