"""Networks: plain :class:`torch.nn.Module` s with no Pyro sites, over any number of leading batch dimensions."""

from pyro_dgm.nn.build import make_network
from pyro_dgm.nn.conditional import Concatenated
from pyro_dgm.nn.conv import ConvDecoder, ConvEncoder
from pyro_dgm.nn.conv_resnet import ConvResNet
from pyro_dgm.nn.lipschitz import LipschitzMLP, LipSwish
from pyro_dgm.nn.masked import MaskedLinear, MaskedMLP
from pyro_dgm.nn.mlp import MLP
from pyro_dgm.nn.transformer import CausalTransformer

__all__ = [
    "MLP",
    "CausalTransformer",
    "Concatenated",
    "ConvDecoder",
    "ConvEncoder",
    "ConvResNet",
    "LipSwish",
    "LipschitzMLP",
    "MaskedLinear",
    "MaskedMLP",
    "make_network",
]
