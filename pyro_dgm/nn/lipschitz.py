"""Networks with a bound on their Lipschitz constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyro_dgm.nn.dense import DenseFunction
from pyro_dgm.ops.arguments import check_count, check_positive, check_sizes

__all__ = ["LipSwish", "LipschitzMLP", "spectral_norm_bound"]


def spectral_norm_bound(weight: Tensor, num_iterations: int = 5) -> Tensor:
    """An upper bound on the largest singular value of a matrix, by Gram iteration.

    .. math:: \\sigma(W)^2 \\le \\lVert (W^\\top W)^{2^T} \\rVert_F^{2^{-T}}

    Power iteration approaches the value from below, so that a network normalised by it may exceed its constant. This is
    above it, by a factor of at most :math:`n^{2^{-T-2}}` for a matrix whose smaller side is :math:`n`: with five
    iterations 1.03 for 64. It is deterministic, smooth, and a few products of matrices.

    :param weight: ``(out, in)``.
    :param num_iterations: squarings :math:`T`.
    :returns: a scalar.

    Source: Delattre, Barthelemy, Araujo, Allauzen (2023), arXiv:2305.16173.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn.lipschitz import spectral_norm_bound
        >>> round(spectral_norm_bound(torch.diag(torch.tensor([3.0, 1.0]))).item(), 3)
        3.0
    """
    gram = weight @ weight.mT if weight.shape[0] <= weight.shape[1] else weight.mT @ weight
    tiny = torch.finfo(weight.dtype).tiny
    log_norm, share = torch.zeros_like(weight[0, 0]), 1.0
    for _ in range(num_iterations):
        # The size may be any number, since it is multiplied in again: it only prevents overflow.
        size = torch.linalg.vector_norm(gram.detach()).clamp_min(tiny)
        log_norm = log_norm + share * size.log()
        scaled = gram / size
        gram, share = scaled @ scaled, share / 2
    log_norm = log_norm + share * torch.linalg.vector_norm(gram).clamp_min(tiny).log()
    return (log_norm / 2).exp()


class LipSwish(nn.Module):
    """The activation :math:`x\\, \\mathrm{sigmoid}(\\beta x) / 1.1` with a learned :math:`\\beta > 0`.

    Its slope is at most one, and it is smooth, as the log-determinant of a residual flow needs it: that of a piecewise
    linear activation does not tell its weights where to go.

    Source: Chen, Behrmann, Duvenaud, Jacobsen (2019), arXiv:1906.02735.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import LipSwish
        >>> LipSwish()(torch.zeros(3)).shape
        torch.Size([3])
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.full((), 0.5, device=torch.get_default_device()))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x * nn.functional.softplus(self.raw_beta)) / 1.1

    def with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative."""
        at = x * nn.functional.softplus(self.raw_beta)
        gate = torch.sigmoid(at) / 1.1
        return x * gate, gate * (1 + at * torch.sigmoid(-at))


class LipschitzMLP(nn.Module):
    """A fully connected network whose Lipschitz constant in its input is below a given one, for any weights.

    .. math:: h_{i+1} = a\\bigl(\\hat W_i h_i + b_i\\bigr), \\qquad
              \\hat W_i = W_i \\min\\bigl(1, \\ell^{1/L} / \\hat\\sigma(W_i)\\bigr)

    with the bound :math:`\\hat\\sigma` of :func:`spectral_norm_bound`. A context is added behind the first layer,
    and is not constrained. The last layer starts at zero.

    :param in_dim: length of the input.
    :param out_dim: length of the output.
    :param hidden: widths of the hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class whose slope is at most one.
    :param lipschitz: the constant :math:`\\ell`, in the Euclidean norm.
    :raises TypeError: if a size is no integer.
    :raises ValueError: if a size or the constant is not positive, or the activation is steeper than one.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import LipschitzMLP
        >>> LipschitzMLP(2, 2, hidden=(16,), lipschitz=0.9)(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = LipSwish,
        lipschitz: float = 0.97,
    ) -> None:
        super().__init__()
        widths = [check_count("in_dim", in_dim), *check_sizes("hidden", hidden), check_count("out_dim", out_dim)]
        self.context_dim = check_count("context_dim", context_dim, 0)
        self.lipschitz = float(check_positive("lipschitz", lipschitz))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.activations = nn.ModuleList(activation() for _ in widths[1:-1])
        for module in self.activations:
            _check_slope(module)
        self.context = nn.Linear(self.context_dim, widths[1], bias=False) if self.context_dim else None
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.zero_()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The output at ``batch + (in_dim,)`` and a context ``batch + (context_dim,)``."""
        return self.function(context)(x)

    def function(self, context: Tensor | None = None) -> DenseFunction:
        """The network as a function of its input alone, whose weights are normalised once: for many evaluations."""
        bound = self.lipschitz ** (1 / len(self.layers))
        layers = cast("list[nn.Linear]", list(self.layers))
        weights = [a.weight * (bound / spectral_norm_bound(a.weight).clamp_min(bound)) for a in layers]
        shift = None if self.context is None else self.context(context)
        return DenseFunction(weights, [a.bias for a in layers], list(self.activations), shift)


def _check_slope(activation: nn.Module) -> None:
    """Refuse an activation that is steeper than one; the slope is taken from differences."""
    parameter = next(activation.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    if torch.device(device).type == "meta":
        return
    at = torch.linspace(-8, 8, 1601, device=device, dtype=torch.float32 if parameter is None else parameter.dtype)
    with torch.no_grad():
        steepest = (activation(at).diff() / at.diff()).abs().max()
    if not steepest <= 1 + 1e-3:
        raise ValueError(
            f"activation must have a slope of at most one, such as LipSwish, Tanh, ELU or Softplus; "
            f"{type(activation).__name__} has {float(steepest):.3g}"
        )
