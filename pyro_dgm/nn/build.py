"""Networks from a specification: a name, or a module of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from pyro_dgm.nn.conditional import Concatenated
from pyro_dgm.nn.conv import ConvDecoder, ConvEncoder
from pyro_dgm.nn.mlp import MLP

__all__ = ["activation_and_name", "hidden_sizes", "make_network", "network_name", "zero_last_layer"]


def network_name(network: object) -> str:
    """What a configuration keeps of a specification: its name, or ``"custom"``."""
    return network if isinstance(network, str) else "custom"


def hidden_sizes(
    network: object, hidden: Sequence[int] | None, defaults: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """The hidden sizes that were asked for, or those that go with the network's name."""
    return tuple(defaults.get(network_name(network), ()) if hidden is None else hidden)


def make_network(
    network: str | nn.Module,
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    hidden: Sequence[int],
    activation: Callable[[], nn.Module] | None = None,
    *,
    decodes: bool = False,
    context: int = 0,
    wanted: str = "'mlp', 'conv' or a module",
) -> nn.Module:
    """A network from one event shape to another, over any number of batch dimensions.

    :param network: ``"mlp"``, ``"conv"`` (strided convolutions, for images), or a module, which is returned as it is.
    :param in_shape: event shape of the input.
    :param out_shape: event shape of the output.
    :param hidden: hidden widths, or channels.
    :param activation: module between layers; ``None`` takes the network's own.
    :param decodes: whether the image is the output of ``"conv"``.
    :param context: length of a context vector that the network takes as its second argument; 0 for none.
    :param wanted: what the argument may be, for the message.
    :raises ValueError: for an unknown name.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import make_network
        >>> make_network("mlp", (8, 8), (5,), (32,))(torch.zeros(10, 8, 8)).shape
        torch.Size([10, 5])
    """
    if isinstance(network, nn.Module):
        return network
    kinds = {"mlp": MLP, "conv": ConvDecoder if decodes else ConvEncoder}
    if not isinstance(network, str) or network not in kinds:
        raise ValueError(f"network must be {wanted}, got {network!r}")
    options = {} if activation is None else {"activation": activation}
    if not context:
        return kinds[network](in_shape, out_shape, hidden, **options)
    image = network == "conv" and not decodes
    joined = Concatenated.joined(in_shape, context, image)
    return Concatenated(kinds[network](joined, out_shape, hidden, **options), in_shape, context, image)


@torch.no_grad()
def zero_last_layer(network: nn.Module) -> nn.Module:
    """Set the weights of a network's last linear layer or convolution to zero: its output starts at zero for any input.

    :returns: the network.
    """
    for parameter in [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1].parameters():
        parameter.zero_()
    return network


def activation_and_name(
    activation: str | Callable[[], nn.Module] | None,
) -> tuple[Callable[[], nn.Module] | None, str | None]:
    """A module class from a class or its name in :mod:`torch.nn`, and the name that a configuration keeps.

    :raises ValueError: for a name that :mod:`torch.nn` does not have.
    """
    if activation is None:
        return None, None
    if isinstance(activation, str):
        found = getattr(nn, activation, None)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ValueError(f"activation must be a module class or its name in torch.nn, got {activation!r}")
        return found, activation
    name = getattr(activation, "__name__", "")
    return activation, name if getattr(nn, name, None) is activation else "custom"
