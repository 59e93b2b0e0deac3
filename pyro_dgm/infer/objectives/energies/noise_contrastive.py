"""Noise-contrastive estimation: a classifier of data and noise, which learns log Z too."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_dgm.infer.objectives.energies.base import EnergyObjective, EnergySite
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.ops.arguments import check_count, check_number
from pyro_dgm.programs import emit_param_messages, param_messages

__all__ = ["NoiseContrastive"]


class NoiseContrastive(EnergyObjective):
    r"""Noise-contrastive estimation: the log-density, :math:`\log Z` and all, as the log-odds of data against noise.

    .. math:: J(\theta, c) = -\sum_n \left[ \log \sigma(G(x_n)) + \sum_{k=1}^{\nu} \log \sigma(-G(y_{nk})) \right],
              \qquad G(u) = \log p_\theta(u) - c - \log q(u) - \log \nu

    with noise :math:`y \sim q` and a number :math:`c`, trained beside the parameters, that tends to :math:`\log Z`:
    :attr:`log_normalizer` reports it.  There are no chains, and the support may be anything that the noise has.  It is
    as good as the noise is near to the data: noise that a glance tells from data teaches nothing, which in many
    dimensions is all noise that one can write down.

    ``run.history["train"]`` holds :math:`-J / N`; it begins near :math:`-(1 + \nu) \log 2` where data look like noise,
    at ``num_noise = 1``, and a value near 0 says that the noise is too easy.

    :param num_noise: :math:`\nu`, noise draws for each datum.
    :param noise: :math:`q`, a normalised distribution with the site's event shape, without batch dimensions. By
        default the base of an :class:`~pyro_dgm.distributions.EnergyDistribution`, or independent normals with the
        first batch's means and standard deviations.
    :param log_normalizer: where :math:`c` begins; by default an importance estimate from the first batch's noise.
    :raises ValueError: for a number out of range or noise of another shape; in training, for energies that are not
        finite.

    Source: M. U. Gutmann and A. Hyvärinen (2010), "Noise-contrastive estimation: a new estimation principle for
    unnormalized statistical models"; the same (2012), "Noise-contrastive estimation of unnormalized statistical models,
    with applications to natural image statistics".

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import NoiseContrastive
        >>> _ = torch.manual_seed(0)
        >>> ebm = pyro_dgm.models.EBM(event_shape=(2,), hidden=(16,))
        >>> nce = NoiseContrastive(num_noise=2)
        >>> run = pyro_dgm.fit(ebm, torch.randn(50, 2), objective=nce, epochs=2, progress=False)
        >>> bool(torch.isfinite(nce.log_normalizer))
        True
    """

    metric = Metric("log-likelihood of telling data from noise")
    #: holds c, trained beside the program's parameters; built when a program is first seen
    learned: Any = None

    def __init__(self, num_noise: int = 1, noise: Any = None, log_normalizer: float | None = None) -> None:
        super().__init__()
        check_count("num_noise", num_noise)
        if noise is not None and not (callable(getattr(noise, "sample", None)) and hasattr(noise, "log_prob")):
            raise TypeError(f"noise must be a distribution, got {type(noise).__name__}")
        check_number("log_normalizer", log_normalizer, optional=True)
        if log_normalizer is not None and not math.isfinite(log_normalizer):
            raise ValueError(f"log_normalizer must be finite, got {log_normalizer}")
        self.noise, self.num_noise, self._start = noise, num_noise, log_normalizer
        #: location and scale of noise that was fitted to the first batch
        self._fitted: tuple[Tensor, Tensor] | None = None

    @property
    def log_normalizer(self) -> Tensor:
        r""":math:`c`, the learnt :math:`\log Z`, nats.

        :raises ValueError: before any training.
        """
        if self.learned is None:
            raise ValueError("there is no log normaliser before the objective has seen a program and a batch")
        return self.learned.value.detach().clone()

    def begin(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> None:
        """Fit the noise and c to a first batch, unless a first program finds those of a checkpoint."""
        if self._seen is not None:
            self.learned, self._fitted = None, None
        with self.checking(), torch.no_grad():  # with the draws that the evaluation will have
            site = self.energy_site(model, args, kwargs)
            self.check_site(site)
            noise = self._noise_for(site)
            if self.learned is not None:
                return
            start, count = self._start, self.num_noise * site.num_data
            if start is None:
                drawn = noise.sample((count,))
                law = site.distribution.expand(torch.Size())
                log_prob = self.check_energy(law.log_prob(drawn), site, "noise draws")
                log_ratio = log_prob - self._noise_log_prob(noise, drawn, site, "noise draws")
                start = float(torch.logsumexp(log_ratio.double(), 0)) - math.log(count)
            self.learned = _LogNormalizer(site.value.new_tensor(start))

    def surrogate(self, site: EnergySite) -> Tensor:
        assert self.learned is not None
        noise = self._noise_for(site)
        law, count = site.distribution.expand(torch.Size()), self.num_noise * site.num_data
        with torch.no_grad():
            drawn = noise.sample((count,))
        negative = self.check_energy(law.log_prob(drawn), site, "noise draws")
        positive = self.check_energy(law.log_prob(site.value), site, "data")
        negative_q = self._noise_log_prob(noise, drawn, site, "noise draws")
        positive_q = self._noise_log_prob(noise, site.value, site, "data")
        with param_messages(bool(_PYRO_STACK)):
            emit_param_messages(self.learned)
        offset = self.learned.value + math.log(self.num_noise)
        data = logsigmoid(positive - positive_q - offset).sum()
        return -(data + logsigmoid(-(negative - negative_q - offset)).sum())

    def _noise_for(self, site: EnergySite) -> Any:
        if self.noise is None:
            base = getattr(site.distribution, "base", None)
            return base if base is not None else self._fit_noise(site)
        noise, wanted = self.noise, tuple(site.distribution.event_shape)
        if tuple(noise.event_shape) != wanted or tuple(noise.batch_shape) != ():
            raise ValueError(
                f"noise must have event shape {wanted} and no batch dimensions, got batch "
                f"{tuple(noise.batch_shape)}, event {tuple(noise.event_shape)}"
            )
        return noise

    def _fit_noise(self, site: EnergySite) -> Any:
        if self._fitted is None:
            x = site.value.detach()
            scale = x.std(0) if len(x) > 1 else torch.zeros_like(x[0])
            if not bool((scale > 0).all()):
                raise ValueError(
                    f"the first batch at site {site.name!r} is constant in {int((~(scale > 0)).sum())} of "
                    f"{scale.numel()} elements, so that no noise can be fitted to it: give noise="
                )
            self._fitted = x.mean(0), scale
        loc, scale = (t.to(site.value) for t in self._fitted)
        return dist.Normal(loc, scale, validate_args=False).to_event(loc.dim())

    def _noise_log_prob(self, noise: Any, value: Tensor, site: EnergySite, points: str) -> Tensor:
        return self.check_finite(
            noise.log_prob(value).detach(),
            lambda bad, count: (
                f"the noise's log-density is {bad} at {count} {points} of site {site.name!r}: it must have mass "
                "wherever there are data"
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """The noise, where it was fitted to a batch; :attr:`learned` is saved with the weights."""
        return {**super().state_dict(), "fitted": self._fitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._fitted = state["fitted"]

    def __repr__(self) -> str:
        return f"NoiseContrastive(num_noise={self.num_noise})"


class _LogNormalizer(nn.Module):
    """The number c."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)
