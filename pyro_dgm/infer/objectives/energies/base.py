r"""The contract of the energy objectives: losses for programs whose observed site is known up to :math:`\log Z`.

The observed site's distribution says how its density is evaluated and sampled
(:class:`~pyro_dgm.distributions.UnnormalizedDistribution`): ``log_prob`` is :math:`-F_\theta(x)`, differentiable in
value and parameters; ``initial_state``, ``state_of``, ``mcmc_step`` and ``state_log_prob`` are the negative phase.
An objective uses nothing else, so it trains every program that has them: a restricted Boltzmann machine by Gibbs
sweeps, a network's energy by a kernel.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import Program
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

    def check_support(self) -> None:
        """Refuse data outside the support of the density, unless validation is off.

        :raises ValueError: naming the site, and how many data there are.
        """
        # The families leave validation to fit, which Pyro's SVI does not go through.
        if not Distribution._validate_args:
            return
        outside = ~self.distribution.support.check(self.value.detach())
        if bool(outside.any()):
            raise ValueError(
                f"site {self.name!r}: {int(outside.sum())} of {len(self.value)} data are outside the support "
                f"{self.distribution.support} of {type(self.distribution).__name__}, or not finite"
            )


def energy_site(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], who: str) -> EnergySite:
    """Run a model on a batch and find its observed site.

    :param who: who asks, for messages.
    :raises ValueError: if there is a latent site, or not exactly one observed site of unnormalised density.
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
    return EnergySite(site["name"], fn, value, site["scale"])


@dataclass(eq=False, repr=False)
class EnergyObjective(Objective):
    """Base of the objectives for energy-based programs.

    A subclass gives :meth:`surrogate`, a scalar whose gradient is the estimator's.  The program has one observed site,
    of unnormalised density, in the plate of the data; the guide is empty. The loss is a sum over the batch, in nats
    where the surrogate is a difference of energies.  It is *not* a bound on the likelihood: :attr:`metric` says what
    ``run.history["train"]`` then holds and which way is better.

    The first batch of a program is checked: data outside the support, and energies that are not finite, are named.
    Later losses that are not finite are found by :func:`pyro_dgm.fit`, and by :meth:`loss_and_grads`.
    """

    #: whether :meth:`check_finite` reads values, which needs the host: on the first batch alone
    _checking = False

    def __post_init__(self) -> None:
        super().__init__()

    @abstractmethod
    def surrogate(self, site: EnergySite) -> Tensor:
        """The loss of a batch, summed over its data, whose gradient is the estimator's; without the site's scale."""

    def energy_site(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> EnergySite:
        """See :func:`energy_site`."""
        return energy_site(model, args, kwargs, type(self).__name__)

    def check_site(self, site: EnergySite) -> None:
        """Refuse a site that the objective cannot work with, whatever its energies are."""
        site.check_support()

    def check_finite(self, values: Tensor, message: Callable[[float, str], str]) -> Tensor:
        """Pass on values, a row a datum; while a batch is checked, refuse those that are not finite.

        :param message: makes the error's text of the first bad value and of how many rows are bad.
        :raises ValueError: with that text.
        """
        if self._checking:
            rows = values.detach().reshape(len(values), -1)
            bad = ~torch.isfinite(rows)
            if bool(bad.any()):
                raise ValueError(message(float(rows[bad][0]), f"{int(bad.any(-1).sum())} of {len(rows)}"))
        return values

    def check_energy(self, log_prob: Tensor, site: EnergySite, points: str) -> Tensor:
        """:meth:`check_finite` for log-densities at ``points``."""
        return self.check_finite(
            log_prob, lambda value, count: f"the energy at site {site.name!r} is {-value} at {count} {points}"
        )

    # What follows from it

    def check(self, program: Any, args: tuple, kwargs: dict) -> None:
        state = self.state_dict()
        with self.checking():
            site = self.energy_site(program.model, args, kwargs)
            self.check_site(site)
            self.loss_of(site, program.model, args, kwargs)
        self.load_state_dict(state)

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Evaluate inside with :meth:`check_finite` looking at values; random state is put back."""
        self._checking = True
        try:
            with forked_rng():
                yield
        finally:
            self._checking = False

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        """The loss of a batch, which is its own surrogate."""
        with torch.set_grad_enabled(grad):
            site = self.energy_site(model, args, kwargs)
            loss = site.scale * self.loss_of(site, model, args, kwargs)
        return loss, loss if grad else None

    def loss_of(self, site: EnergySite, model: Any, args: tuple, kwargs: dict) -> Tensor:
        """The loss without scale: the :meth:`surrogate`, and what an objective adds that runs the model again."""
        return self.surrogate(site)

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if not math.isfinite(loss.item()):
            self.check(Program(model, guide, own_store=False), args, kwargs)  # says which energies they are
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())
