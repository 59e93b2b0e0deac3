"""Distances between two sets of draws, and the total correlation of a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_dgm.ops.arguments import check_count

__all__ = ["gaussian_total_correlation", "mmd", "sliced_wasserstein"]

KERNELS = ("rbf", "imq")


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: str = "rbf",
    bandwidth: float | None = None,
    scales: Sequence[float] = (1.0,),
    unbiased: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy of the distributions that ``x`` and ``y`` are drawn from.

    .. math:: \mathrm{MMD}^2 = E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y), \qquad
              k_{\mathrm{rbf}} = e^{-\|x - y\|^2 / 2 h^2}, \quad
              k_{\mathrm{imq}} = \frac{2 h^2}{2 h^2 + \|x - y\|^2}

    Zero for these kernels just when the distributions are equal.  The inverse multiquadratic has heavy tails, and
    still pulls on draws that lie far out.  Memory and time grow with the square of the number of draws.

    :param x: independent draws, shape ``(..., n, d)``.
    :param y: independent draws, shape ``(..., m, d)``, independent of ``x``.
    :param kernel: ``"rbf"`` or ``"imq"``.
    :param bandwidth: h, in the units of ``x``; :math:`\sqrt d` if not given, which suits draws of standard deviation 1
        and makes the inverse multiquadratic that of Tolstikhin et al.
    :param scales: the kernel is averaged over these multiples of :math:`h^2`; several spare the choice of one.
    :param unbiased: leave a draw's kernel with itself out (U-statistic; may be below zero).  Otherwise the V-statistic,
        at least zero and biased upwards by a term of order ``1/n``.
    :param mask: which draws count, shape ``(n,)`` or ``(..., n)``, of ``x`` and ``y`` alike; needs ``n = m``.
    :returns: shape ``(...)``.
    :raises ValueError: for an unknown kernel, a bandwidth or scale that is not positive, shapes that do not fit, or
        fewer than two draws where ``unbiased``.

    Source: A. Gretton, K. Borgwardt, M. Rasch, B. Schoelkopf and A. Smola (2012), "A kernel two-sample test", Journal
    of Machine Learning Research 13; I. Tolstikhin, O. Bousquet, S. Gelly and B. Schoelkopf (2018), arXiv:1711.01558,
    for the inverse multiquadratic.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import mmd
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(500, 2), torch.randn(500, 2) + 1.0
        >>> bool(mmd(x, y) > 10 * mmd(x, torch.randn(500, 2)).abs())
        True
    """
    n, m = _sizes(x, y, mask)
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be 'rbf' or 'imq', got {kernel!r}")
    if unbiased and min(n, m) < 2:
        raise ValueError(f"unbiased needs at least 2 draws on each side, got {n} and {m}: pass unbiased=False")
    square = x.shape[-1] if bandwidth is None else bandwidth**2
    if (bandwidth is not None and bandwidth <= 0) or not scales or min(scales) <= 0:
        raise ValueError(f"bandwidth and scales must be positive, got {bandwidth!r} and {tuple(scales)}")
    widths = [2 * square * s for s in scales]

    def average(a: Tensor, b: Tensor, same: bool) -> Tensor:
        distance = _squared_distance(a, b)
        if kernel == "rbf":
            values = sum((torch.exp(-distance / w) for w in widths), torch.zeros_like(distance)) / len(widths)
        else:
            values = sum((w / (w + distance) for w in widths), torch.zeros_like(distance)) / len(widths)
        weight = None if mask is None else (mask[..., :, None] & mask[..., None, :]).to(values.dtype)
        if same and unbiased:
            other = 1 - torch.eye(a.shape[-2], dtype=values.dtype, device=values.device)
            weight = other if weight is None else weight * other
        if weight is None:
            return values.mean((-2, -1))
        # A batch in which one draw is left has no pairs: it counts as none.
        return (weight * values).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1)

    return average(x, x, True) + average(y, y, True) - 2 * average(x, y, False)


def sliced_wasserstein(x: Tensor, y: Tensor, num_projections: int = 50, mask: Tensor | None = None) -> Tensor:
    r"""Squared sliced Wasserstein-2 distance of two sets of as many draws.

    .. math:: \mathrm{SW}_2^2 = E_{\theta}\left[W_2^2(\theta^\top x, \theta^\top y)\right], \qquad
              W_2^2(a, b) = \frac1n \sum_i (a_{(i)} - b_{(i)})^2

    with :math:`\theta` uniform on the unit sphere and :math:`a_{(i)}` the i-th smallest: on a line the best transport
    joins draws in order, so that sorting solves it exactly.  Time grows as ``n log n`` and there is no kernel to
    choose.  Between finite sets it is biased upwards: two sets of draws of one distribution differ too.

    :param x: draws, shape ``(..., n, d)``.
    :param y: draws, shape ``(..., n, d)``.
    :param num_projections: random directions :math:`\theta` that are averaged over, drawn anew at each call.
    :param mask: which draws count, shape ``(n,)`` or ``(..., n)``, of ``x`` and ``y`` alike.
    :returns: shape ``(...)``, in squared units of ``x``.
    :raises ValueError: for fewer than one projection or shapes that do not fit.

    Source: S. Kolouri, P. E. Pope, C. E. Martin and G. K. Rohde (2018), arXiv:1804.01947; N. Bonneel, J. Rabin,
    G. Peyre and H. Pfister (2015), "Sliced and Radon Wasserstein barycenters of measures", Journal of Mathematical
    Imaging and Vision 51.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import sliced_wasserstein
        >>> x = torch.randn(100, 1)
        >>> round(sliced_wasserstein(x, x + 3.0).item(), 3)
        9.0
    """
    n, m = _sizes(x, y, mask)
    check_count("num_projections", num_projections)
    if n != m:
        raise ValueError(f"x and y must hold as many draws, got {n} and {m}")
    directions = torch.randn(x.shape[-1], num_projections, dtype=x.dtype, device=x.device)
    directions = directions / directions.norm(dim=0, keepdim=True)
    a, b = x @ directions, y @ directions
    if mask is None:
        return ((a.sort(-2).values - b.sort(-2).values) ** 2).mean((-2, -1))
    mask = mask.expand(x.shape[:-1])
    # What does not count is sorted to the end, on both sides alike, and left out there.
    gone, count = ~mask[..., None], mask.sum(-1)
    a, b = (v.masked_fill(gone, torch.inf).sort(-2).values for v in (a, b))
    counted = (torch.arange(n, device=x.device) < count[..., None])[..., None]
    step = torch.where(counted, a - b, torch.zeros_like(a))
    return (step**2).mean(-1).sum(-1) / count.clamp(min=1)


def gaussian_total_correlation(covariance: Tensor) -> Tensor:
    r"""Total correlation of a Gaussian: how many nats its dimensions say about each other.

    .. math:: \mathrm{TC} = KL\left(N(m, C) \,\|\, \prod_d N(m_d, C_{dd})\right)
              = \tfrac12 \left(\sum_d \log C_{dd} - \log \det C\right)

    :param covariance: C, shape ``(..., d, d)``, positive definite.
    :returns: shape ``(...)``, nats.

    Source: S. Watanabe (1960), "Information theoretical analysis of multivariate correlation", IBM Journal of Research
    and Development 4.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import gaussian_total_correlation
        >>> round(gaussian_total_correlation(torch.tensor([[1.0, 0.6], [0.6, 1.0]])).item(), 4)  # -log(1 - 0.36) / 2
        0.2231
    """
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    return 0.5 * (diagonal.log().sum(-1) - torch.linalg.slogdet(covariance).logabsdet)


def _sizes(x: Tensor, y: Tensor, mask: Tensor | None) -> tuple[int, int]:
    if x.dim() < 2 or y.dim() < 2 or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x and y must have shapes (..., n, d) and (..., m, d), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    n, m = x.shape[-2], y.shape[-2]
    if mask is not None and (n != m or mask.dtype != torch.bool or mask.shape[-1:] != (n,)):
        raise ValueError(
            f"mask must be of bool, shape (n,) or (..., n), for x and y of n draws each; got {mask.dtype}, "
            f"{tuple(mask.shape)} for {n} and {m} draws"
        )
    return n, m


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    # |a|^2 + |b|^2 - 2ab: no (n, m, d) tensor is held.  Rounding may leave it just below zero.
    squares = (a**2).sum(-1)[..., :, None] + (b**2).sum(-1)[..., None, :]
    return (squares - 2 * a @ b.mT).clamp(min=0)
