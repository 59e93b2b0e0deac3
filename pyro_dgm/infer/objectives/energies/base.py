r"""The contract of the energy objectives: losses for programs whose observed site is known up to :math:`\log Z`.

The observed site's distribution says how its density is evaluated and sampled
(:class:`~pyro_dgm.distributions.UnnormalizedDistribution`): ``log_prob`` is :math:`-F_\theta(x)`, differentiable in
value and parameters; ``initial_state``, ``state_of``, ``mcmc_step`` and ``state_log_prob`` are the negative phase.
An objective looks at nothing else, so it trains whatever has them: a restricted Boltzmann machine by Gibbs sweeps, a
network's energy by a kernel.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO as PyroELBO
from torch import Tensor
from torch.distributions import Distribution

from pyro_dgm.infer.objectives.base import ObjectiveModule
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.programs.parameters import leaves_the_store
from pyro_dgm.programs.structure import sample_sites

__all__ = ["EnergyObjective", "EnergySite", "energy_site"]


@dataclass(frozen=True)
class EnergySite:
    """The observed site of an energy-based program on a batch.

    :ivar name: of the site.
    :ivar distribution: an :class:`~pyro_dgm.distributions.UnnormalizedDistribution` at the present parameters.
    :ivar value: the batch, ``(N, *event_shape)``.
    :ivar scale: by which the site counts: that of subsampled plates and mini-batches, 1 without.
    """

    name: str
    distribution: Any
    value: Tensor
    scale: Any

    @property
    def num_data(self) -> int:
        """N."""
        return self.value.shape[0]


def energy_site(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], who: str) -> EnergySite:
    """Run a model on a batch and find its observed site.

    :param who: who asks, for messages.
    :raises ValueError: if there is a latent site, or not exactly one observed site of unnormalised density; unless
        validation is off, for data outside its support.
    """
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    sites = sample_sites(trace)
    latent = [name for name, site in sites.items() if not site["is_observed"]]
    if latent:
        raise ValueError(
            f"{who} is for programs without latent sites, but the model samples {latent}: sum them out, or observe them"
        )
    found = [site for site in sites.values() if hasattr(site["fn"], "mcmc_step")]
    if len(found) != 1 or len(sites) != 1:
        kinds = {name: type(site["fn"]).__name__ for name, site in sites.items()}
        raise ValueError(
            f"{who} needs a model with one site, of unnormalised density (a distribution with "
            f"mcmc_step, such as RBMDistribution); this one has {kinds or 'none'}"
        )
    site = found[0]
    fn, value = site["fn"], site["value"]
    if value.dim() != len(fn.event_shape) + 1:
        raise ValueError(
            f"site {site['name']!r} must be in one plate, over the data: its value has shape {tuple(value.shape)}, "
            f"the event shape is {tuple(fn.event_shape)}"
        )
    if site["mask"] is not None:
        raise ValueError(f"site {site['name']!r} is masked, which {who} does not take")
    if Distribution._validate_args:  # the families leave validation to fit, which Pyro's SVI does not go through
        outside = ~fn.support.check(value.detach())
        if bool(outside.any()):
            raise ValueError(
                f"site {site['name']!r}: {int(outside.sum())} of {len(value)} data are outside the support "
                f"{fn.support} of {type(fn).__name__}, or not finite"
            )
    return EnergySite(site["name"], fn, value, site["scale"])


class EnergyObjective(PyroELBO):
    """Base of the objectives for energy-based programs.

    A subclass gives :meth:`surrogate`, a scalar whose gradient is the estimator's.  As the ELBOs it works in
    :func:`pyro_dgm.fit`, in :class:`pyro.infer.SVI` and as ``objective(model, guide)``, a module whose value on a
    batch is the loss.  The program has one observed site, of unnormalised density, in the plate of the data; the
    guide is empty. The loss is a sum over the batch, in nats where the surrogate is a difference of energies.  It is
    *not* a bound on the likelihood: :attr:`metric` says what ``run.history["train"]`` then holds and which way is
    better.
    """

    #: what the value per datum is called in a run's history, its unit, and which way is better
    metric: Metric

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def surrogate(self, site: EnergySite) -> Tensor:
        """The loss of a batch, summed over its data, whose gradient is the estimator's; without the site's scale."""

    def energy_site(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> EnergySite:
        """See :func:`energy_site`."""
        return energy_site(model, args, kwargs, type(self).__name__)

    def check_energy(self, log_prob: Tensor, site: EnergySite, what: str) -> Tensor:
        """Pass on log-densities that are all finite.

        :raises ValueError: naming the site and what it was evaluated at.
        """
        bad = ~torch.isfinite(log_prob.detach())
        if bool(bad.any()):
            value = log_prob.detach()[bad][0]
            raise ValueError(
                f"the energy at site {site.name!r} is {-float(value)} at {int(bad.sum())} of {bad.numel()} {what}"
            )
        return log_prob

    # What is the same for all

    def __call__(self, model: Any, guide: Any) -> ObjectiveModule:
        return ObjectiveModule(model, guide, self)

    @leaves_the_store
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss of the whole batch as a tensor whose ``backward`` gives the estimator's gradient."""
        site = self.energy_site(model, args, kwargs)
        return site.scale * self.surrogate(site)

    @leaves_the_store
    @torch.no_grad()
    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss of the whole batch."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss of the whole batch; gradients are added to the parameters' ``.grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        return tuple(poutine.trace(fn).get_trace(*args, **kwargs) for fn in (model, guide))
