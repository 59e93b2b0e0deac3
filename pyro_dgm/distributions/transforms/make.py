"""Whole flows from a name: layers, what mixes the elements between them, and the scale of the data."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.distributions import constraints
from torch import nn

from pyro_dgm.distributions.transforms.affine import ElementwiseAffine
from pyro_dgm.distributions.transforms.base import Bijection
from pyro_dgm.distributions.transforms.compose import Compose
from pyro_dgm.distributions.transforms.coupling import Coupling
from pyro_dgm.distributions.transforms.elementwise import ElementwiseFamily
from pyro_dgm.distributions.transforms.family_bijection import Elementwise
from pyro_dgm.distributions.transforms.image_coupling import ImageCoupling
from pyro_dgm.distributions.transforms.make_image import make_image_flow
from pyro_dgm.distributions.transforms.permutation import Permutation
from pyro_dgm.distributions.transforms.reshape import Reshape
from pyro_dgm.ops.arguments import check_count, check_sizes

__all__ = ["make_flow"]


def make_flow(
    transform: str | Bijection | Callable[..., Bijection],
    event_shape: Sequence[int] | int,
    *,
    num_layers: int = 4,
    context_dim: int = 0,
    fast: str = "inverse",
    mixing: str | None = None,
    registry: Mapping[str, type[Bijection]] | None = None,
    hidden: Sequence[int] | None = None,
    activation: Callable[[], nn.Module] | None = None,
    num_bins: int | None = None,
    bound: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Bijection:
    """A flow of several layers, from noise to data.

    By name, ``num_layers`` layers of that transform alternate with a permutation of the elements, and an
    :class:`~pyro_dgm.distributions.transforms.ElementwiseAffine` at the end gives the location and scale of the data.
    Layers that are fast in one direction only are turned so that this is the direction of ``fast``. Events of one
    element have no halves for a coupling: the same functions then have parameters that depend on the context alone
    (:class:`~pyro_dgm.distributions.transforms.Elementwise`).

    :param transform: a name in ``pyro_dgm.distributions.transforms.TRANSFORMS``; ``"image_flow"`` for
        :func:`~pyro_dgm.distributions.transforms.make_image_flow`; a transform, which is taken as it is; or a callable
        that makes one from an event shape (a length, for vectors) and ``context_dim=``.
    :param event_shape: shape of one datum; an integer for vectors. Layers of vectors see it flattened.
    :param num_layers: layers, where ``transform`` is a name.
    :param context_dim: length of the context vectors; 0 for none.
    :param fast: ``"inverse"`` for density estimation, ``"forward"`` for guides.
    :param mixing: what is between layers: ``"permutation"`` (as ``None``), or the name of a linear transform, which
        then stands behind each permutation. Of ``"image_flow"``, that of its function.
    :param registry: names and classes; ``None`` for ``TRANSFORMS``.
    :param hidden: hidden widths of the layers' networks; ``None`` takes the layers' own.
    :param activation: of these networks, a module class; ``None`` takes the layers' own.
    :param num_bins: bins of splines; ``None`` takes the layers' own.
    :param bound: half the width of the interval of splines and polynomials; ``None`` takes the layers' own.
    :param options: other arguments of the layers, ``{"order": "reverse"}`` say. These arguments are for layers by
        name.
    :raises TypeError: if ``transform`` makes no transform, or the layers do not have an option.
    :raises ValueError: for an unknown name, or a transform of another event shape or length of context.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import make_flow
        >>> flow = make_flow("spline_coupling", 3, num_layers=2, hidden=(16,), num_bins=4)
        >>> flow.inverse_and_log_det(torch.zeros(5, 3))[1].shape
        torch.Size([5])
    """
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    shape = check_sizes("event_shape", shape)
    check_count("context_dim", context_dim, 0)
    if fast not in ("inverse", "forward"):
        raise ValueError(f"fast must be 'inverse' or 'forward', got {fast!r}")
    named = {"hidden": hidden, "activation": activation, "num_bins": num_bins, "bound": bound}
    layer = {**{key: value for key, value in named.items() if value is not None}, **(options or {})}
    if transform == "image_flow":
        if mixing is not None:
            layer["mixing"] = mixing
        _check_options("image_flow", make_image_flow, layer)
        made = make_image_flow(shape, num_layers=num_layers, context_dim=context_dim, **layer)
    elif isinstance(transform, str):
        known = _known() if registry is None else registry
        mixing = "permutation" if mixing is None else mixing
        made = _by_name(transform, shape, num_layers, context_dim, fast, mixing, known, layer)
    elif layer:
        raise TypeError(f"{sorted(layer)[0]!r} is an option of layers by name, but transform is no name")
    elif isinstance(transform, Bijection):
        made = transform
    elif callable(transform):
        made = transform(shape[0] if len(shape) == 1 else shape, context_dim=context_dim)
    else:
        made = transform
    if not isinstance(made, Bijection):
        raise TypeError(
            f"transform must be a name, a Bijection or a callable that makes one, got {type(made).__name__}"
        )
    return _of_shape(made, shape, context_dim)


def _known() -> Mapping[str, type[Bijection]]:
    from pyro_dgm.distributions.transforms import TRANSFORMS

    return TRANSFORMS


def _by_name(
    name: str,
    shape: tuple[int, ...],
    num_layers: int,
    context_dim: int,
    fast: str,
    mixing: str,
    known: Mapping[str, type[Bijection]],
    options: Mapping[str, Any],
) -> Bijection:
    if name not in known:
        raise ValueError(f"transform must be one of {', '.join(sorted([*known, 'image_flow']))}, got {name!r}")
    if mixing != "permutation" and mixing not in known:
        raise ValueError(f"mixing must be 'permutation' or one of {', '.join(sorted(known))}, got {mixing!r}")
    check_count("num_layers", num_layers)
    kind = known[name]
    if issubclass(kind, ImageCoupling):
        raise ValueError(f"transform={name!r} in each layer would never change half of an image: take 'image_flow'")
    takes_vectors = next(iter(inspect.signature(kind).parameters)) == "dim"
    size: Any = math.prod(shape) if takes_vectors else shape
    make: Callable[..., Bijection]
    if size == 1 and takes_vectors and issubclass(kind, Coupling) and kind.family_type is not None:
        make = functools.partial(_of_one_element, kind.family_type)
    else:
        make = kind
    _check_options(name, kind, options)
    # The same call for all: a part without context refuses the keyword only where there is one to give.
    conditional: dict[str, Any] = {"context_dim": context_dim} if context_dim else {}
    other = "forward" if fast == "inverse" else "inverse"
    parts: list[Bijection] = []
    for i in range(num_layers):
        if i and takes_vectors and size > 1:
            parts.append(_permutation(size, i))
            if mixing != "permutation":
                parts.append(known[mixing](size))
        layer = make(size, **conditional, **options)
        if getattr(layer.domain, "base_constraint", layer.domain) is not constraints.real:
            raise ValueError(f"transform={name!r} is not on real numbers: compose its layers, and give base= too")
        parts.append(layer.inv if layer.fast == other else layer)
    parts.append(ElementwiseAffine(size, context_dim))
    return Compose(parts)


def _check_options(name: str, kind: Callable[..., Bijection], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(kind).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    own = [key for key in list(parameters)[1:] if key not in ("context_dim", "num_layers")]
    wrong = sorted(set(options) - set(own))
    if wrong:
        raise TypeError(f"transform={name!r} has no option {wrong[0]!r}; it has {', '.join(own) or 'none'}")


def _of_one_element(
    family_type: type[ElementwiseFamily],
    size: int,
    *,
    hidden: Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: Callable[[], nn.Module] | None = None,
    mask: Any = None,
    flip: bool = False,
    network: str | nn.Module = "mlp",
    **family: Any,
) -> Bijection:
    """What a coupling is for one element, which there is nothing to divide of: ``mask`` and ``flip`` mean nothing."""
    if isinstance(network, nn.Module):
        raise ValueError("network must be 'mlp' for events of one element: no element stays that it could take")
    return Elementwise(
        size,
        family_type(**family),
        hidden=hidden,
        context_dim=context_dim,
        activation=nn.ReLU if activation is None else activation,
    )


def _permutation(size: int, index: int) -> Permutation:
    # Every second one exchanges the halves, so that two layers of a coupling change all elements. Of few elements a
    # random permutation is often the identity.
    return Permutation(size) if index % 2 or size < 4 else Permutation(size, "random", seed=index)


def _of_shape(made: Bijection, shape: tuple[int, ...], context_dim: int) -> Bijection:
    """The transform, with its output reshaped where it is a vector and the data are not."""
    if made.context_dim != context_dim:
        raise ValueError(
            f"transform must take contexts of length {context_dim}, but its context_dim is {made.context_dim}"
        )
    if tuple(made.out_shape) == shape:
        return made
    if tuple(made.out_shape) != (math.prod(shape),):
        raise ValueError(f"transform must give events of shape {shape}, but it gives {tuple(made.out_shape)}")
    return Compose([made, Reshape(made.out_shape, shape)])
