"""ATen graphs on JAX: a table of rules from torch's operations to :mod:`jax.numpy`, and the program made with it.

Each file with a function ``rules()`` holds one kind of operation; JAX is imported when the table is first asked for.
"""

from pyro_dgm.interop.jaxlower.graph import drop_unread_inputs, functional_graph
from pyro_dgm.interop.jaxlower.program import CannotConvert, Lowered, lower
from pyro_dgm.interop.jaxlower.rules import lowerings

__all__ = ["CannotConvert", "Lowered", "drop_unread_inputs", "functional_graph", "lower", "lowerings"]
