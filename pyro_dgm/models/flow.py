"""Density estimation by a normalizing flow, as a Pyro program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.distributions.dequantization import IntoCell, IntoLevels, Quantized, UniformCell
from pyro_dgm.distributions.flow import FlowDistribution
from pyro_dgm.distributions.transforms import Bijection, Compose, make_flow
from pyro_dgm.models.base import Family, program_method
from pyro_dgm.models.context import Context
from pyro_dgm.nn.build import activation_and_name, make_network
from pyro_dgm.ops.arguments import check_count, check_floating
from pyro_dgm.ops.logmeanexp import log_mean_exp
from pyro_dgm.ops.random_state import seeded

__all__ = ["FlowModel"]

#: of the guide of variational dequantisation: features of a datum, and layers
_NOISE_FEATURES, _NOISE_LAYERS = 32, 2


class FlowModel(Family):
    r"""Density estimation by a normalizing flow: base noise, an invertible transform, and a density in closed form.

    .. math:: z_n \sim p_0, \quad x_n = f_\theta(z_n; c_n), \qquad
              \log p(x_n) = \log p_0(f_\theta^{-1}(x_n)) + \log |\det J_{f_\theta^{-1}}(x_n)|

    The observed site ``x`` has this density, and there is no latent site: every ELBO is the log-likelihood. Train it
    with :class:`~pyro_dgm.infer.ELBO`, and standardise the data or call :meth:`initialize` first.

    **Discrete levels** (pixels, counts): with ``dequantize`` the data are integers, the flow is over a continuous
    latent ``z``, and ``x`` is its integer part. The guide adds noise in :math:`[0, 1)` to the data. ELBO and IWAE are
    then lower bounds on the log-probability of the integers.

    :param event_shape: shape of one datum.
    :param transform: a name in ``pyro_dgm.distributions.transforms.TRANSFORMS``, ``"image_flow"``, a
        :class:`~pyro_dgm.distributions.transforms.Bijection` from noise to data, or a callable that makes one from the
        event shape and ``context_dim=``; see :func:`~pyro_dgm.distributions.transforms.make_flow`.
    :param num_layers: layers, where ``transform`` is a name; of ``"image_flow"``, those of each level.
    :param hidden: hidden widths of the layers' networks; ``None`` takes the layers' own.
    :param activation: of these networks: a module class, or its name in :mod:`torch.nn`.
    :param options: other arguments of each layer, ``{"num_bins": 16}`` say.
    :param base: distribution of the noise, or a callable (a module, whose parameters are trained) that gives it.
        ``None`` is the standard normal.
    :param num_classes: the model is conditional on a class for each datum, with batches ``(x, y)``.
    :param context_dim: the model is conditional on a vector for each datum, ``(N, context_dim)``; 0 for none.
    :param dequantize: ``None`` for real-valued data; ``"uniform"`` for noise that is uniform, ``"variational"`` for
        noise of a conditional flow that is trained with the model, which gives a tighter bound.
    :param num_levels: number of the data's levels, 0 to ``num_levels - 1``, with ``dequantize``.
    :raises ValueError: for unknown names, or sizes out of range.

    Source: D. J. Rezende and S. Mohamed (2015), arXiv:1505.05770; C. Durkan, A. Bekasov, I. Murray and
    G. Papamakarios (2019), arXiv:1906.04032. Dequantisation: L. Theis, A. van den Oord and M. Bethge (2016),
    arXiv:1511.01844; J. Ho et al. (2019), arXiv:1902.00275.

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> flow = pyro_dgm.models.FlowModel((2,), num_layers=2, hidden=(16,))
        >>> x = torch.randn(100, 2)
        >>> run = pyro_dgm.fit(flow, x, objective=pyro_dgm.infer.ELBO(), epochs=2, seed=0, progress=False)
        >>> flow.log_prob(x).shape, flow.sample(3, seed=0).shape
        (torch.Size([100]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        transform: str | Bijection | Callable[..., Bijection] = "spline_coupling",
        num_layers: int = 4,
        hidden: Sequence[int] | None = None,
        activation: str | Callable[[], nn.Module] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        base: dist.TorchDistribution | Callable[..., Any] | None = None,
        num_classes: int | None = None,
        context_dim: int | None = None,
        dequantize: str | None = None,
        num_levels: int = 256,
    ) -> None:
        super().__init__(event_shape)
        if dequantize not in (None, "uniform", "variational"):
            raise ValueError(f"dequantize must be None, 'uniform' or 'variational', got {dequantize!r}")
        if base is not None and not (callable(base) or isinstance(base, torch.distributions.Distribution)):
            raise TypeError(
                f"base must be a distribution, a callable that gives one or None, got {type(base).__name__}"
            )
        self.context = Context(num_classes, context_dim or None)
        self.num_layers = check_count("num_layers", num_layers)
        self.num_levels = check_count("num_levels", num_levels, 2)
        self.dequantize, self.base = dequantize, base
        self._transform_name = transform if isinstance(transform, str) else "custom"
        self.hidden = None if hidden is None else tuple(hidden)
        self.options = dict(options or {})
        made, self._activation_name = activation_and_name(activation)
        shape: Any = tuple(self.event_shape)
        flow = make_flow(
            transform,
            shape,
            num_layers=self.num_layers,
            context_dim=self.context.size,
            hidden=self.hidden,
            activation=made,
            options=self.options,
        )
        self.flow = flow if dequantize is None else Compose([flow, IntoLevels(shape, self.num_levels)])
        if dequantize == "variational":
            self.noise = make_flow(
                "affine_coupling", shape, num_layers=_NOISE_LAYERS, context_dim=_NOISE_FEATURES, fast="forward"
            )
            self.encoder = make_network("mlp", shape, (_NOISE_FEATURES,), (64,), context=self.context.size)

    @program_method
    def model(self, x: Tensor, *context: Tensor) -> None:
        """Observe ``x`` of shape ``(N, *event_shape)``; with ``dequantize``, draw the latent ``z`` first."""
        flow = self.distribution(*context)
        with pyro.plate(self.plate_name, x.shape[0], dim=-1):
            if self.dequantize is None:
                pyro.sample(self.obs_name, flow, obs=x)
            else:
                z = pyro.sample("z", flow)
                pyro.sample(self.obs_name, Quantized(z, self.num_levels, len(self.event_shape)), obs=x)

    @program_method
    def guide(self, x: Tensor, *context: Tensor) -> None:
        """Nothing to draw; with ``dequantize``, draw ``z``, the data with noise in :math:`[0, 1)`."""
        if self.dequantize is not None:
            with pyro.plate(self.plate_name, x.shape[0], dim=-1):
                pyro.sample("z", self.noise_distribution(x, *context))

    def distribution(self, *context: Tensor) -> FlowDistribution:
        """The flow as a distribution, for a ``pyro.sample`` site: of the data, or of ``z`` with ``dequantize``."""
        base = (
            self.base if isinstance(self.base, torch.distributions.Distribution) or self.base is None else self.base()
        )
        return FlowDistribution(self.flow, base, *self.context.encode(context, self._like), validate_args=False)

    def noise_distribution(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """The guide's distribution of the continuous ``z`` of integers ``x``, of batch shape ``(N,)``.

        :raises ValueError: without ``dequantize``.
        """
        if self.dequantize is None:
            raise ValueError("noise_distribution is of discrete data: give dequantize='uniform' or 'variational'")
        x = x.to(self._like.dtype)
        if self.dequantize == "uniform":
            return UniformCell(x, len(self.event_shape))
        features = self.encoder(x / self.num_levels - 0.5, *self.context.encode(context, self._like))
        transform = Compose([self.noise, IntoCell(x, len(self.event_shape))])
        return FlowDistribution(transform, None, features, remember=True, validate_args=False)

    def log_prob(self, x: Tensor, *context: Tensor) -> Tensor:
        """Exact :math:`\\log p(x_n)` in nats, shape ``(N,)``.

        :param x: data, ``(N, *event_shape)``.
        :param context: of a conditional model, as in its batches.
        :raises ValueError: with ``dequantize``, where there are only bounds.
        """
        if self.dequantize is not None:
            raise ValueError(
                "the probability of integers is an integral of the density: bits_per_dim, or log_likelihood with "
                "method='iwae', give bounds"
            )
        self.check_batch(x, *context)
        return self.distribution(*context).log_prob(x)

    def bits_per_dim(self, x: Tensor, *context: Tensor, num_particles: int = 1, seed: int | None = None) -> Tensor:
        """Negative log-likelihood in bits per dimension, :math:`-\\log_2 p(x_n) / D`, shape ``(N,)``.

        For real-valued data it is that of their density, and depends on the units. With ``dequantize`` it is that of
        the integers, an upper bound by ``num_particles`` draws of the noise.

        :param x: data, ``(N, *event_shape)``.
        :param context: of a conditional model, as in its batches.
        :param num_particles: draws of the noise.
        :param seed: of the draws; without it they take (and advance) torch's global generator.
        """
        check_count("num_particles", num_particles)
        per_bit = self.event_shape.numel() * math.log(2)
        if self.dequantize is None:
            return -self.log_prob(x, *context) / per_bit
        self.check_batch(x, *context)
        flow, noise = self.distribution(*context), self.noise_distribution(x, *context)
        with seeded(seed, self._like.device):
            z = noise.rsample((num_particles,))
        return -log_mean_exp(flow.log_prob(z) - noise.log_prob(z), 0) / per_bit

    @torch.no_grad()
    def initialize(self, x: Tensor, *context: Tensor) -> None:
        """Set scales and shifts from data, so that the layers see standardised ones; call it once, before training.

        This is the location and scale at the end of flows made by name, and each
        :class:`~pyro_dgm.distributions.transforms.ActNorm` of a flow of images, for which a few hundred data are
        enough. See :meth:`~pyro_dgm.distributions.transforms.Bijection.initialize`.

        :param x: data, ``(N, *event_shape)``, at least two.
        :param context: of a conditional model, as in its batches; not needed where only the end of the flow is set.
        :raises ValueError: if the flow has no part that starts from data, or a context that is needed is missing.
        """
        if x.shape[1:] != self.event_shape or len(x) < 2:
            raise ValueError(f"x must hold at least two data of shape {tuple(self.event_shape)}, got {tuple(x.shape)}")
        self.check_values(x)
        if context:
            self.check_context(len(x), *context)
        if not self.flow.starts_from_data:
            raise ValueError(
                "initialize needs a flow with a part that starts from data, ElementwiseAffine or ActNorm, got none"
            )
        y = x.to(self._like.dtype)
        if self.dequantize is not None:
            # With noise, since the middle of the cell would give pixels that are nearly constant too small a scale.
            with seeded(0, y.device):
                y = UniformCell(y, len(self.event_shape)).rsample()
        self.flow.initialize(y, *self.context.encode(context, self._like) if context else ())

    def check_values(self, x: Tensor) -> None:
        """Refuse what is not floating point; with ``dequantize``, what is no level."""
        if self.dequantize is None:
            check_floating("x", x)
        elif bool(((x != x.floor()) | (x < 0) | (x >= self.num_levels)).any()):
            raise ValueError(
                f"x must hold integers from 0 to {self.num_levels - 1}, as num_levels says, got values from "
                f"{float(x.min())} to {float(x.max())}"
            )

    def check_context(self, length: int, *context: Any) -> None:
        """Refuse a context that does not go with a batch: missing, of another shape, or a class out of range."""
        if context or self.context.size:
            if not self.context.size:
                super().check_context(length, *context)
            self.context.check(context, length)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it, for JSON; an object of your own reads ``"custom"`` and must be given again."""
        return {
            "event_shape": list(self.event_shape),
            "transform": self._transform_name,
            "num_layers": self.num_layers,
            "hidden": None if self.hidden is None else list(self.hidden),
            "activation": self._activation_name,
            "options": dict(self.options),
            "base": None if self.base is None else "custom",
            **self.context.config(),
            "dequantize": self.dequantize,
            "num_levels": self.num_levels,
        }
