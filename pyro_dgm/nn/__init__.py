"""Networks: plain :class:`torch.nn.Module` s with no Pyro sites, over any number of leading batch dimensions."""

from pyro_dgm.nn.build import make_network
from pyro_dgm.nn.conditional import Concatenated
from pyro_dgm.nn.conv import ConvDecoder, ConvEncoder
from pyro_dgm.nn.masked import MaskedLinear, MaskedMLP
from pyro_dgm.nn.mlp import MLP

__all__ = ["MLP", "Concatenated", "ConvDecoder", "ConvEncoder", "MaskedLinear", "MaskedMLP", "make_network"]
