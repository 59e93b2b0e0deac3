"""The energy-based model of data: a network's energy, tilting a normal base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.distributions.energy import EnergyDistribution
from pyro_dgm.models.energy_family import EnergyFamily
from pyro_dgm.nn.build import hidden_sizes, make_network, network_name

__all__ = ["EBM"]


class EBM(EnergyFamily):
    r"""Energy-based model: the log-density of images or vectors is a network, up to its normaliser.

    .. math:: p(x) = \frac{p_0(x) \, e^{-E_\theta(x) / T}}{Z(\theta)}, \qquad p_0 = N(\mu_0, \sigma_0^2 I)

    The observed site ``x`` has this law (:class:`~pyro_dgm.distributions.EnergyDistribution`); there is no latent site.
    Train it with :class:`~pyro_dgm.infer.PersistentCD` (Langevin chains, a replay buffer), or without chains by
    :class:`~pyro_dgm.infer.DenoisingScoreMatching` and its like; an ELBO is refused.

    The base is much wider than the data.  It makes the density one that can be normalised, and chains begin at draws
    of it.

    :param event_shape: shape of one datum.
    :param network: ``"mlp"``, ``"conv"`` (image event shapes), or a module from ``(N, *event_shape)`` to ``(N,)``.
    :param hidden: hidden widths, or channels of the stride-2 convolutions.
    :param base: ``"normal"``; ``None`` for no base; or a normalised distribution with this event shape.
    :param base_loc: :math:`\mu_0`, a number or a tensor that broadcasts to ``event_shape``.
    :param base_scale: :math:`\sigma_0`, likewise.
    :param temperature: :math:`T`.
    :param step_size: :math:`\epsilon` of Langevin steps, in units of the data; :math:`\epsilon^2 / 2` is the time step.
    :param kernel: of :mod:`pyro_dgm.infer.mcmc`, instead of Langevin steps.
    :param initial: distribution of one datum that chains begin at, instead of the base.
    :param noise_level: for a network of your own that takes a noise level too, :math:`E(x, \sigma)` with levels
        ``(N,)``: the level that the density is at.
    :raises ValueError: for unknown names, or numbers out of range.

    Source: J. Xie, Y. Lu, S.-C. Zhu and Y. N. Wu (2016), "A theory of generative ConvNet", arXiv:1602.03264; Y. Du and
    I. Mordatch (2019), "Implicit generation and generalization in energy-based models", arXiv:1903.08689.

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> ebm = pyro_dgm.models.EBM(event_shape=(2,), hidden=(32,), step_size=0.3)
        >>> x = 0.3 * torch.randn(100, 2) + 1
        >>> pcd = pyro_dgm.infer.PersistentCD(num_steps=5, num_chains=50, buffer=500, reinit=0.05)
        >>> run = pyro_dgm.fit(ebm, x, objective=pcd, epochs=2, progress=False)
        >>> ebm.sample(3, num_steps=20, seed=0).shape
        torch.Size([3, 2])
    """

    base_loc: Tensor
    base_scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        network: str | nn.Module = "mlp",
        hidden: Sequence[int] | None = None,
        base: str | Any | None = "normal",
        *,
        base_loc: float | Tensor = 0.0,
        base_scale: float | Tensor = 1.0,
        temperature: float = 1.0,
        step_size: float = 0.1,
        kernel: Any = None,
        initial: Any = None,
        noise_level: float | None = None,
    ) -> None:
        super().__init__(event_shape)
        if isinstance(base, str) and base != "normal":
            raise ValueError(f"base must be 'normal', None or a distribution, got {base!r}")
        self._base_name = base if base is None or isinstance(base, str) else "custom"
        self._base = base if self._base_name == "custom" else None
        scale = torch.as_tensor(base_scale, dtype=torch.get_default_dtype())
        if not bool((scale > 0).all() and torch.isfinite(scale).all()):
            raise ValueError(f"base_scale must be positive and finite, got {base_scale}")
        for name, value in (("base_loc", base_loc), ("base_scale", scale)):
            full = torch.as_tensor(value, dtype=torch.get_default_dtype()).expand(self.event_shape).clone()
            self.register_buffer(name, full)
        self._network_name = network_name(network)
        self.hidden = hidden_sizes(network, hidden, {"mlp": (128, 128), "conv": (32, 64)})
        # Score matching takes second derivatives, which a ReLU does not have.
        self.energy = make_network(network, self.event_shape, (), self.hidden, nn.SiLU)
        self.temperature, self.step_size, self.kernel = float(temperature), float(step_size), kernel
        self.initial, self.noise_level = initial, noise_level
        self.distribution()  # checks its arguments

    def base(self) -> Any:
        """The base, a distribution of one datum, or ``None``."""
        if self._base_name != "normal":
            return self._base
        normal = dist.Normal(self.base_loc, self.base_scale, validate_args=False)
        return normal.to_event(len(self.event_shape))

    def distribution(self) -> EnergyDistribution:
        """The law of a datum at the present parameters."""
        return EnergyDistribution(
            self.energy,
            self.event_shape,
            self.base(),
            temperature=self.temperature,
            step_size=self.step_size,
            kernel=self.kernel,
            initial=self.initial,
            noise_level=self.noise_level,
            validate_args=False,
        )

    @torch.no_grad()
    def initialize_base(self, x: Tensor, widen: float = 1.0) -> None:
        """Set the normal base to the data's mean, and to one scale for all elements.

        :param x: training data, ``(N, *event_shape)``.
        :param widen: factor for the data's root mean square deviation.
        :raises ValueError: for another base, or data without any spread.
        """
        self.check_batch(x)
        if self._base_name != "normal":
            raise ValueError("initialize_base is for base='normal'")
        mean = x.mean(0)
        scale = widen * float((x - mean).square().mean().sqrt())
        if not scale > 0:
            raise ValueError(f"the base's scale would be {scale}: x has no spread, or widen is not positive")
        self.base_loc.copy_(mean)
        self.base_scale.fill_(scale)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it, for JSON; a base's location and scale are among the weights.

        An object of your own (network, base, kernel, initial) reads ``"custom"`` and must be given again.
        """
        return {
            "event_shape": list(self.event_shape),
            "network": self._network_name,
            "hidden": list(self.hidden),
            "base": self._base_name,
            "temperature": self.temperature,
            "step_size": self.step_size,
            "kernel": None if self.kernel is None else "custom",
            "initial": None if self.initial is None else "custom",
            "noise_level": self.noise_level,
        }
