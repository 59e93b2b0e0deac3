"""Log-likelihoods of data under a density that is known up to a constant, the constant estimated by annealing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_dgm.analysis.annealed import Annealing
from pyro_dgm.infer.mcmc.potentials.sites import Feasible
from pyro_dgm.infer.objectives.energies.base import energy_site
from pyro_dgm.infer.smc.ais import AIS
from pyro_dgm.ops.log_normalizer import LogNormalizer
from pyro_dgm.programs.structure import sample_sites

__all__ = ["energy_log_likelihood", "is_unnormalized"]


def is_unnormalized(program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a program is a density known up to a constant: no latent site, and an observed one without log Z."""
    with torch.no_grad(), poutine.block():
        sites = sample_sites(poutine.trace(Feasible()(program.model)).get_trace(*args, **kwargs)).values()
    observed = all(site["is_observed"] for site in sites)
    return observed and any(getattr(site["fn"], "normalized", True) is False for site in sites)


def energy_log_likelihood(
    program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], settings: Annealing, kernel: Any = None
) -> tuple[Tensor, LogNormalizer]:
    r""":math:`\log p(x_n) = -F(x_n) - \log Z`, nats, ``(N,)``, and the estimate of :math:`\log Z`.

    A program with a ``log_normalizer`` of its own (a Boltzmann machine's anneals by Gibbs sweeps) is asked for it; else
    chains anneal from the distribution's base.

    :param kernel: the caller's own, ``None`` for the default one.
    :raises ValueError: for a distribution without base, a path from the guide, or a kernel for what has Gibbs sweeps.
    """
    if settings.initial != "prior":
        raise ValueError("initial='guide' is for programs with latent sites: chains begin at the density's base here")
    site = energy_site(program.model, args, kwargs, "log_likelihood")
    site.check_support()
    if callable(getattr(program, "log_normalizer", None)) and callable(getattr(program, "log_likelihood", None)):
        if kernel is not None or settings.num_steps != 1:
            raise ValueError(
                f"kernel and num_steps are for chains from a base: {type(program).__name__} anneals by sweeps of "
                "its own, one at each temperature"
            )
        estimate = program.log_normalizer(
            "ais", settings.num_temperatures, settings.num_chains, schedule=settings.schedule
        )
        return program.log_likelihood(*args, **kwargs, log_normalizer=estimate), estimate
    law = site.distribution.expand(torch.Size())
    base = getattr(law, "base", None)
    if base is None:
        raise ValueError(
            f"the density at site {site.name!r} has no base that its log Z could be annealed from: give the "
            f"{type(law).__name__} one, or take infer.smc.AIS(initial, distribution) with a start of your own"
        )
    ais = AIS(
        base,
        law,
        settings.kernel,
        num_temperatures=settings.num_temperatures,
        schedule=settings.schedule,
        num_steps=settings.num_steps,
    )
    estimate = ais.forward(settings.num_chains)
    parts = site.value.split(settings.chunk_size or len(site.value))
    return torch.cat([law.log_prob(part) for part in parts]).double() - estimate.value, estimate
