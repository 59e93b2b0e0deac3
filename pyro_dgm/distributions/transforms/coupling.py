"""Coupling layers: some elements stay, and give the parameters by which the others are transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import ValueAndLogDet
from pyro_dgm.distributions.transforms.elementwise import (
    AdditiveFamily,
    AffineFamily,
    ElementwiseFamily,
)
from pyro_dgm.distributions.transforms.family_bijection import FamilyBijection
from pyro_dgm.nn import make_network
from pyro_dgm.nn.build import zero_last_layer
from pyro_dgm.ops.arguments import check_count

__all__ = ["AdditiveCoupling", "AffineCoupling", "Coupling"]


def _kept(mask: str | Sequence[bool], dim: int, flip: bool) -> list[bool]:
    """Which elements stay, one boolean each."""
    if isinstance(mask, str):
        if mask not in ("half", "alternate"):
            raise ValueError(f"mask must be 'half', 'alternate' or a sequence of booleans, got {mask!r}")
        kept = [i < dim // 2 if mask == "half" else i % 2 == 0 for i in range(dim)]
    else:
        kept = [bool(m) for m in mask]
        if len(kept) != dim or len(set(kept)) < 2:
            raise ValueError(f"mask must hold {dim} booleans, true and false ones, got {tuple(mask)}")
    return [k != flip for k in kept]


class Coupling(FamilyBijection):
    """A coupling layer with any family of element-wise functions.

    .. math:: y_A = x_A, \\qquad y_B = f(x_B;\\; \\theta(x_A, c)), \\qquad
        \\log |\\det J| = \\sum_{i \\in B} \\log f'(x_i; \\theta_i)

    Both directions take one pass of the network. Put several in a row with other elements staying each time
    (``flip=``, ``mask=``, or a :class:`~pyro_dgm.distributions.transforms.Permutation` in between).

    :param dim: length of the vectors, at least 2.
    :param family: the element-wise functions :math:`f`.
    :param hidden: widths of the network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class; ``None`` takes the network's own.
    :param mask: the elements that stay: ``"half"`` (the first half), ``"alternate"`` (every other one), or a boolean
        for each.
    :param flip: whether to exchange those that stay with the others.
    :param network: ``"mlp"``, whose last layer starts at zero, so that the layer starts as the family does; or a
        module from the ``kept`` elements (and the context, as a second argument) to ``(changed, num_parameters)``.
    :raises TypeError: if a size is no integer, or ``family`` is no :class:`ElementwiseFamily`.
    :raises ValueError: if a size is out of range, or the mask does not divide the elements.

    Source: Dinh, Sohl-Dickstein, Bengio (2017), arXiv:1605.08803.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Coupling, SplineFamily
        >>> y, log_det = Coupling(4, SplineFamily(num_bins=4)).forward_and_log_det(torch.zeros(5, 4))
        >>> y.shape, log_det.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """

    #: family of a subclass that has one of its own: ``make_flow`` then takes it for events of one element too
    family_type: type[ElementwiseFamily] | None = None

    _merge: Tensor

    def __init__(
        self,
        dim: int,
        family: ElementwiseFamily,
        *,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] | None = None,
        mask: str | Sequence[bool] = "half",
        flip: bool = False,
        network: str | nn.Module = "mlp",
    ) -> None:
        super().__init__(check_count("dim", dim, 2, why="some elements stay, others change"), family, context_dim)
        kept = _kept(mask, dim, flip)
        self.kept = [i for i in range(dim) if kept[i]]
        self.changed = [i for i in range(dim) if not kept[i]]
        together = self.kept + self.changed
        for name, index in (
            ("_kept", self.kept),
            ("_changed", self.changed),
            ("_merge", sorted(range(dim), key=together.__getitem__)),
        ):
            self.register_buffer(name, torch.tensor(index, device=torch.get_default_device()), persistent=False)
        # Parts that lie together need no gathering.
        self._kept_first = together == list(range(dim))
        self._kept_last = self.changed + self.kept == list(range(dim))
        self._own = isinstance(network, nn.Module)
        in_shape, out_shape = (family.num_features * len(self.kept),), (family.num_parameters, len(self.changed))
        self.network = make_network(network, in_shape, out_shape, hidden, activation, context=self.context_dim)
        if not self._own:
            zero_last_layer(self.network)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._apply_to(self.family.forward, x, context)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._apply_to(self.family.inverse, y, context)

    def _apply_to(self, function: Callable[..., Any], value: Tensor, context: Tensor | None) -> ValueAndLogDet:
        if self._kept_first:
            kept, changed = value.split((len(self.kept), len(self.changed)), -1)
        elif self._kept_last:
            changed, kept = value.split((len(self.changed), len(self.kept)), -1)
        else:
            kept, changed = value.index_select(-1, self._kept), value.index_select(-1, self._changed)  # type: ignore[arg-type]
        features = self.family.features(kept)
        parameters = self.network(features) if context is None else self.network(features, context)
        wanted = (len(self.changed), self.family.num_parameters)
        if not self._own:
            parameters = parameters.transpose(-1, -2)
        elif parameters.shape[-2:] != wanted:
            raise ValueError(f"network must give the shape batch + {wanted}, got {tuple(parameters.shape)}")
        changed, log_derivative = function(changed, parameters)
        if self._kept_first:
            out = torch.cat([kept, changed], -1)
        elif self._kept_last:
            out = torch.cat([changed, kept], -1)
        else:
            out = torch.cat([kept, changed], -1).index_select(-1, self._merge)
        return out, log_derivative.sum(-1)


class AffineCoupling(Coupling):
    """RealNVP's coupling: some elements are scaled and shifted by functions of the others.

    .. math:: y_A = x_A, \\qquad y_B = x_B \\odot e^{s(x_A, c)} + b(x_A, c)

    The log-scale is bounded softly, :math:`|s| < s_{\\max}`, so that neither direction can overflow.

    :param dim: length of the vectors, at least 2.
    :param max_log_scale: the bound :math:`s_{\\max}`.
    :param hidden: widths of the network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network; ``None`` takes the network's own.
    :param mask: the elements that stay: ``"half"`` (the first half), ``"alternate"`` (every other one), or a boolean
        for each.
    :param flip: whether to exchange those that stay with the others.
    :param network: ``"mlp"``, or a module of your own, see :class:`~pyro_dgm.distributions.transforms.Coupling`.
    :raises ValueError: if the bound is not positive; and as ``Coupling``.

    Source: Dinh, Sohl-Dickstein, Bengio (2017), arXiv:1605.08803.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import AffineCoupling
        >>> AffineCoupling(3, context_dim=2).condition(torch.zeros(5, 2))(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    family_type = AffineFamily

    def __init__(
        self,
        dim: int,
        *,
        max_log_scale: float = 5.0,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] | None = None,
        mask: str | Sequence[bool] = "half",
        flip: bool = False,
        network: str | nn.Module = "mlp",
    ) -> None:
        super().__init__(
            dim,
            AffineFamily(max_log_scale),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            mask=mask,
            flip=flip,
            network=network,
        )


class AdditiveCoupling(Coupling):
    """NICE's coupling: some elements are shifted by a function of the others; it preserves volume.

    .. math:: y_A = x_A, \\qquad y_B = x_B + b(x_A, c), \\qquad \\log |\\det J| = 0

    Put an :class:`~pyro_dgm.distributions.transforms.ElementwiseAffine` at the end of a flow of these, as the paper
    does: alone they cannot change the scale.

    :param dim: length of the vectors, at least 2.
    :param hidden: widths of the network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network; ``None`` takes the network's own.
    :param mask: the elements that stay: ``"half"`` (the first half), ``"alternate"`` (every other one), or a boolean
        for each.
    :param flip: whether to exchange those that stay with the others.
    :param network: ``"mlp"``, or a module of your own, see :class:`~pyro_dgm.distributions.transforms.Coupling`.
    :raises ValueError: as ``Coupling``.

    Source: Dinh, Krueger, Bengio (2015), arXiv:1410.8516.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import AdditiveCoupling
        >>> AdditiveCoupling(3).forward_and_log_det(torch.zeros(5, 3))[1].tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    family_type = AdditiveFamily

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] | None = None,
        mask: str | Sequence[bool] = "half",
        flip: bool = False,
        network: str | nn.Module = "mlp",
    ) -> None:
        super().__init__(
            dim,
            AdditiveFamily(),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            mask=mask,
            flip=flip,
            network=network,
        )
