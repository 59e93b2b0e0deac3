"""Density estimation with a normalizing flow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import SigmoidTransform

from pyro_dgm.distributions import FlowDistribution, Rounded
from pyro_dgm.distributions.transforms import (
    Bijection,
    Compose,
    ElementwiseAffine,
    Wrapped,
    make_flow,
)
from pyro_dgm.models.base import Family, program_method
from pyro_dgm.models.context import Context
from pyro_dgm.ops.arguments import check_count, check_sizes

__all__ = ["FlowModel"]


class FlowModel(Family):
    """A normalizing flow as a model of data, with its exact density.

    .. math:: u \\sim N(0, I), \\qquad x = f(u; c), \\qquad
        \\log p(x | c) = \\log N(f^{-1}(x; c); 0, I) + \\log |\\det \\partial f^{-1} / \\partial x|

    There is no latent: every objective that bounds :math:`\\log p(x)` is exact, and ``ELBO()`` is maximum likelihood.

    **Data with levels.** Pixels and counts have no density. With ``num_levels`` the program draws a latent ``v`` in the
    unit cube from the flow, and the datum is the level that it falls in. The guide draws ``v`` uniformly within the
    datum's bin: ``ELBO()`` is then the bound of uniform dequantisation, and ``IWAE(K)`` a tighter one.

    :param event_shape: shape of one datum.
    :param transform: name of the layers in ``distributions.transforms.TRANSFORMS``, or a transform from
        noise to data of your own, which is then the whole flow.
    :param num_layers: number of layers. Between couplings the elements are permuted; autoregressive layers alternate
        their order, and are fast from data to noise (as in MAF).
    :param hidden: widths of each layer's network.
    :param options: more keyword arguments of each layer, such as ``{"num_bins": 8}``.
    :param num_levels: number of levels of the data, which are 0, ..., ``num_levels - 1``; ``None`` for continuous data.
    :param num_classes: number of classes of a conditional density; the batch is then ``(x, classes)``.
    :param context_dim: length of the context vectors of a conditional density; the batch is then ``(x, vectors)``.
    :raises TypeError: if a number is no integer, or ``transform`` is neither a name nor a transform.
    :raises ValueError: for an unknown name, a number out of range, or a transform of another event shape.

    Source: Papamakarios et al. (2021), "Normalizing flows for probabilistic modeling and inference", arXiv:1912.02762;
    Theis et al. (2016), arXiv:1511.01844 (dequantisation).

    Example::

        >>> import torch, pyro_dgm
        >>> flow = pyro_dgm.models.FlowModel((2,), "affine_coupling", num_layers=2, hidden=(16,))
        >>> flow.log_prob(torch.zeros(5, 2)).shape, flow.sample(3, seed=0).shape
        (torch.Size([5]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        transform: str | Bijection = "spline_coupling",
        num_layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        options: Mapping[str, Any] | None = None,
        *,
        num_levels: int | None = None,
        num_classes: int | None = None,
        context_dim: int | None = None,
    ) -> None:
        super().__init__(event_shape)
        check_count("num_layers", num_layers)
        check_count("num_levels", num_levels, 2, optional=True)
        self.context = Context(num_classes, context_dim)
        self.transform_name = transform if isinstance(transform, str) else "custom"
        self.num_layers, self.hidden = int(num_layers), check_sizes("hidden", hidden)
        self.options, self.num_levels = dict(options or {}), num_levels
        self.flow = self._flow(transform)
        self.whitening = next((m for m in self.flow.modules() if isinstance(m, ElementwiseAffine)), None)
        self.register_buffer("base_loc", torch.zeros(self.flow.event_shape))
        self.register_buffer("base_scale", torch.ones(self.flow.event_shape))

    def _flow(self, transform: str | Bijection) -> Bijection:
        by_name = {"num_layers": self.num_layers, "hidden": self.hidden, **self.options}
        options: dict[str, Any] = by_name if isinstance(transform, str) else {}
        shape = tuple(self.event_shape)
        flow = make_flow(transform, shape, context_dim=self.context.size, fast="inverse", **options)
        if self.num_levels is None or not isinstance(transform, str):
            return flow
        return Compose([flow, Wrapped(SigmoidTransform(), shape)])

    def distribution(self, *context: Tensor) -> FlowDistribution:
        """The density of a datum (with ``num_levels``: of ``v``) given its context."""
        vectors = self.context.encode(context, self.base_loc)
        base = dist.Normal(self.base_loc, self.base_scale, validate_args=False).to_event(self.base_loc.dim())
        return FlowDistribution(self.flow, base, next(iter(vectors), None), validate_args=False)

    @program_method
    def model(self, x: Tensor, *context: Tensor) -> None:
        """Observe ``x`` of shape ``(N, *event_shape)``."""
        density = self.distribution(*context)
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            if self.num_levels is None:
                pyro.sample(self.obs_name, density, obs=x)
            else:
                v = pyro.sample("v", density)
                pyro.sample(self.obs_name, Rounded(v, self.num_levels, len(self.event_shape)), obs=x)

    @program_method
    def guide(self, x: Tensor, *context: Tensor) -> None:
        """Nothing for continuous data; with ``num_levels``, ``v`` is uniform within the bin of each datum."""
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            if self.num_levels is not None:
                low, high = (x.to(self.base_loc) + shift for shift in (0, 1))
                bins = _InsideUnit(low / self.num_levels, high / self.num_levels)
                pyro.sample("v", bins.to_event(len(self.event_shape)))

    def log_prob(self, x: Tensor, *context: Tensor) -> Tensor:
        """Exact :math:`\\log p(x_n | c_n)` in nats, shape ``(N,)``.

        :raises ValueError: for data with levels, whose probability is an integral: use an objective's bound.
        """
        self.check_batch(x, *context)
        if self.num_levels is not None:
            raise ValueError(
                "log_prob is exact for continuous data only; with num_levels take a bound, "
                "infer.IWAE(64).bound(flow.model, flow.guide, x)"
            )
        return self.distribution(*context).log_prob(x)

    def bits_per_dim(self, nats: Tensor) -> Tensor:
        """Bits per dimension from log-probabilities (or bounds) of data in nats: :math:`-\\log p / (D \\log 2)`."""
        return -nats / (self.event_shape.numel() * math.log(2.0))

    @torch.no_grad()
    def standardize(self, x: Tensor, *context: Tensor) -> FlowModel:
        """Set the last scale and shift so that the data, before them, have mean 0 and standard deviation 1.

        Call it once before training: splines bend an interval around zero only.

        :raises ValueError: for a transform of your own without an
            :class:`~pyro_dgm.distributions.transforms.ElementwiseAffine`.
        """
        self.check_batch(x, *context)
        if self.whitening is None or self.transform_name == "custom":
            raise ValueError("standardize needs the flow of a name: a transform of your own is left as it is")
        values = x.to(self.base_loc).flatten(1)
        if self.num_levels is not None:
            values = torch.logit((values + 0.5) / self.num_levels)
        scale = values.std(0, correction=0).clamp(min=1e-3)
        self.whitening.bias.copy_(torch.cat([values.mean(0), scale.log()]))
        return self

    def check_values(self, x: Tensor) -> None:
        """Refuse what is not floating point, or, with ``num_levels``, no level."""
        if self.num_levels is None:
            super().check_values(x)
        elif not bool(((x >= 0) & (x < self.num_levels) & (x == x.floor())).all()):
            raise ValueError(
                f"x must hold levels 0, ..., {self.num_levels - 1}, got values from {float(x.min()):.4g} to "
                f"{float(x.max()):.4g} (grey values in [0, 1] are levels after (255 * x).round())"
            )

    def check_context(self, length: int, *context: Any) -> None:
        """Refuse a context that does not go with a batch: missing, of another shape, or a class out of range."""
        self.context.check(context, length)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it, for JSON; a transform of your own reads ``"custom"`` and must be given again."""
        return {
            "event_shape": list(self.event_shape),
            "transform": self.transform_name,
            "num_layers": self.num_layers,
            "hidden": list(self.hidden),
            "options": self.options,
            "num_levels": self.num_levels,
            **self.context.config(),
        }


class _InsideUnit(dist.Uniform):
    """Uniform within bins of the unit interval, as the flow's support says, never on its ends."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__(low, high, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        return constraints.unit_interval

    def expand(self, batch_shape: Any, _instance: Any = None) -> _InsideUnit:
        return _InsideUnit(self.low.expand(batch_shape), self.high.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        tiny = torch.finfo(self.low.dtype).eps
        return super().rsample(torch.Size(sample_shape)).clamp(tiny, 1 - tiny)
