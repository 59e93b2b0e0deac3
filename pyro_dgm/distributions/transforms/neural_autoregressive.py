"""Neural autoregressive flows: monotonic networks with parameters of another network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from pyro_dgm.distributions.transforms.autoregressive import Autoregressive
from pyro_dgm.distributions.transforms.elementwise import ElementwiseFamily, aligned
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.root_finding import invert_in_bracket

__all__ = ["NeuralAutoregressive", "SigmoidalFamily"]

#: smallest slope of a unit
LEAST_SLOPE = 1e-3
#: where softplus is one
ONE = math.log(math.e - 1)


class SigmoidalFamily(ElementwiseFamily):
    """Deep sigmoidal flow: the logit of a mixture of sigmoids, several times.

    .. math:: f(x) = \\mathrm{logit} \\sum_j w_j\\, \\sigma(a_j x + b_j), \\qquad a_j > 0, \\quad \\sum_j w_j = 1

    The mixture goes from zero to one, so that :math:`f` is onto the real line, with straight tails; value and
    derivative are computed on the scale of logarithms. The value lies between the smallest and the largest of
    :math:`a_j x + b_j`, which gives the numerical inverse its bracket.

    :param num_units: sigmoids in a mixture.
    :param num_layers: number of such functions one after another. An element takes ``3 * num_units * num_layers``
        parameters.
    :raises ValueError: if one is not positive.

    Source: Huang, Krueger, Lacoste, Courville (2018), arXiv:1804.00779.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import SigmoidalFamily
        >>> family = SigmoidalFamily(num_units=4)
        >>> y, log_derivative = family(torch.ones(5, 3), torch.zeros(5, 3, family.num_parameters))
        >>> y.shape, log_derivative.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    _offsets: Tensor

    def __init__(self, num_units: int = 8, num_layers: int = 1) -> None:
        super().__init__()
        self.num_units, self.num_layers = check_count("num_units", num_units), check_count("num_layers", num_layers)
        self.num_parameters = 3 * self.num_units * self.num_layers
        # Units that start at one place would get the same gradient, and stay one unit.
        places = torch.linspace(-1, 1, self.num_units, device=torch.get_default_device())
        self.register_buffer("_offsets", places if self.num_units > 1 else torch.zeros_like(places), persistent=False)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for layer in self._layers(aligned(parameters, x)):
            x, log_slope = _logit_and_log_slope(x, layer)
            total = log_slope if total is None else total + log_slope
        return x, total  # type: ignore[return-value]

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for layer in reversed(self._layers(aligned(parameters, y))):
            y = _inverse(y, layer)
            _, log_slope = _logit_and_log_slope(y, layer)
            total = -log_slope if total is None else total - log_slope
        return y, total  # type: ignore[return-value]

    def _layers(self, parameters: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Slopes, offsets and logarithms of the weights of each layer, units first."""
        raw = parameters.movedim(-1, 0).unflatten(0, (self.num_layers, 3, self.num_units))
        offsets = self._offsets.reshape((-1,) + (1,) * (parameters.dim() - 1))
        slopes = LEAST_SLOPE + (1 - LEAST_SLOPE) * softplus(raw[:, 0] + ONE)
        return [*zip(slopes, raw[:, 1] + offsets, raw[:, 2].log_softmax(1), strict=True)]


def _logit(x: Tensor, layer: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The logit of the mixture."""
    slopes, offsets, log_weights = layer
    at = torch.addcmul(offsets, slopes, x)
    log_up = log_weights + logsigmoid(at)
    return torch.logsumexp(log_up, 0) - torch.logsumexp(log_up - at, 0)


def _logit_and_log_slope(x: Tensor, layer: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The logit of the mixture, and the logarithm of its derivative."""
    slopes, offsets, log_weights = layer
    at = torch.addcmul(offsets, slopes, x)
    log_sigmoid = logsigmoid(at)
    log_rest = log_sigmoid - at
    log_up, log_down = log_weights + log_sigmoid, log_weights + log_rest
    below, above = torch.logsumexp(log_up, 0), torch.logsumexp(log_down, 0)
    # The derivative is sum_j w_j a_j s_j (1 - s_j) / (S (1 - S)). In a tail one of S and 1 - S is so small that its
    # logarithm must be subtracted before anything of another size is added.
    share = torch.where(below < above, log_up - below + log_rest, log_down - above + log_sigmoid)
    return below - above, torch.logsumexp(share + slopes.log(), 0) - torch.maximum(below, above)


def _inverse(y: Tensor, layer: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    slopes, offsets, _ = layer
    with torch.no_grad():
        of_units = (y - offsets) / slopes
        low, high = of_units.amin(0), of_units.amax(0)

    def with_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        value, log_slope = _logit_and_log_slope(x, layer)
        return value, log_slope.exp().clamp_min(torch.finfo(x.dtype).eps)

    return invert_in_bracket(lambda x: _logit(x, layer), with_slope, y, low, high)


class NeuralAutoregressive(Autoregressive):
    """Neural autoregressive flow: each element goes through a monotonic network whose weights a masked network gives.

    The monotonic network is a deep sigmoidal flow, see
    :class:`~pyro_dgm.distributions.transforms.SigmoidalFamily`. It can approach any density. Its log-determinant is in
    closed form, without quadrature, and it is onto the real line, so that densities are normalised. The inverse is
    numerical. See :class:`~pyro_dgm.distributions.transforms.Autoregressive` for which direction is fast. It starts
    near the identity.

    :param dim: length of the vectors.
    :param num_units: sigmoids in each layer of the monotonic network.
    :param num_layers: layers of the monotonic network.
    :param hidden: widths of the masked network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network.
    :param order: the elements, first one first; ``None`` for the order in which they stand, ``"reverse"`` for the
        other one.
    :param residual: whether hidden layers are residual.
    :raises ValueError: if a number is out of range; and as ``Autoregressive``.

    Source: Huang, Krueger, Lacoste, Courville (2018), arXiv:1804.00779.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import NeuralAutoregressive
        >>> NeuralAutoregressive(3, num_units=4, hidden=(16,))(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        dim: int,
        *,
        num_units: int = 8,
        num_layers: int = 1,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Sequence[int] | str | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__(
            dim,
            SigmoidalFamily(num_units, num_layers),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            order=order,
            residual=residual,
        )
