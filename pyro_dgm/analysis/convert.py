"""From any result of the library, or of Pyro's own MCMC, to ArviZ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_dgm.analysis.groups import Conversion
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.ops.arguments import check_count, check_seed
from pyro_dgm.ops.random_state import seeded
from pyro_dgm.programs import as_program, split_batch
from pyro_dgm.programs.batch import checked_arguments
from pyro_dgm.programs.one_at_a_time import one_at_a_time

__all__ = ["to_arviz"]


@one_at_a_time
def to_arviz(
    result: Any,
    *,
    data: Any = None,
    model: Callable[..., Any] | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    log_likelihood: bool = True,
    log_prior: bool = True,
    posterior_predictive: bool | None = None,
    prior: bool | int = False,
    num_samples: int = 250,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    chunk_size: int = 128,
    seed: int | None = None,
) -> Any:
    """Convert draws to ArviZ's container, with every group that the model can give.

    Use it on whatever comes out of inference, before ``arviz.summary``, ``arviz.loo``, plots or a netCDF file.
    The model is run again over the draws (in ``eval()`` mode, vectorised, ``chunk_size`` draws at a time) for:

    - ``posterior``: the latents, and what follows from them: ``pyro.deterministic`` sites, and sites that a
      reparameterisation (``LocScaleReparam``, ``NeuTraReparam``, ...) or the model itself computes from latents and
      marks as observed (where the latents they depend on have draws);
    - ``log_likelihood``: for each observed site :math:`\\log p(x_n \\mid z^{(s)})` in nats, one for each element of
      its batch shape, not scaled by subsampling, as ``arviz.loo`` wants it.  Elements that are masked are no data and
      are left out: those of a masked site are in one dimension, ``<site>_unmasked``, whose coordinates
      ``<site>_<plate>`` say where they were;
    - ``log_prior``: likewise for each latent site, masked ones being zero, and for computed sites with a density of
      their own (a Jacobian);
    - ``posterior_predictive``: observed sites drawn anew from the model, at each draw of the latents.  For predictions
      at new inputs give those as ``args=``, with ``None`` or stand-ins of the right shape for what is to be predicted;
    - ``prior`` and ``prior_predictive``: draws of the whole model;
    - ``sample_stats`` as the sampler gave them, ``observed_data``, and ``constant_data`` (tensors among the
      arguments that are not observed).

    Plates give their names to dimensions, and their subsample indices as labels; all other dimensions are
    ``<site>_dim_0``, ``<site>_dim_1``, ...  A plate called ``chain`` or ``draw`` (or as a variable is)
    becomes ``<plate>_plate``; a ``/`` in a site's name becomes a dot.
    Batch dimensions of size 1 without a plate are dropped.  ``pyro.factor`` terms are in no group.

    :param result: a :class:`~pyro_dgm.infer.posterior.Posterior`; :class:`pyro_dgm.infer.mcmc.MCMC` or
        :class:`pyro.infer.MCMC` after ``run``; a fitted run of :func:`pyro_dgm.fit`, or any program, of which the
        guide is drawn from.
    :param data: the batch of data, where the result does not keep it (a run, a program), or new ones: a tensor, or a
        tuple or mapping of the model's arguments.
    :param model: model to use in place of the one that the result keeps.
    :param args: positional arguments of the model, an alternative to ``data``.
    :param kwargs: keyword arguments of the model, likewise.
    :param log_likelihood: compute the group of that name.  A bare potential has no model, and so none of the groups
        that need one.
    :param log_prior: likewise.
    :param posterior_predictive: likewise; by default only for a run or a program.
    :param prior: number of draws from the prior; ``True`` takes 500.
    :param num_samples: draws from the guide, for a run or a program: in each of four chains, which are independent.
    :param coords: labels of dimensions, over those that plates give.
    :param dims: site name to the names of its last dimensions, over those given by plates.
    :param chunk_size: draws that are evaluated at once; lower it if memory runs out.
    :param seed: seed of the predictive and prior draws; without it they take (and advance) the global generators.
    :returns: ``arviz.InferenceData`` (ArviZ 0.23) or :class:`xarray.DataTree` (>= 1.0).
    :raises TypeError: if ``result`` is none of these.
    :raises ValueError: if the data are needed and not given; if a latent site of the model has no draws (an
        enumerated one) while a group is asked for that depends on it; if a latent lies in a plate that subsamples at
        random (which rows its draws belong to is then unknown: give the plate its ``subsample=``); if a predictive
        group needs draws of a distribution that cannot be drawn; for a name in ``dims`` or ``coords`` that is no site
        or dimension.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.analysis import arviz_adapter
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=2)
        >>> x = torch.randn(5, 3)
        >>> z = m.posterior(x).sample((4, 25)).detach()
        >>> post = pyro_dgm.infer.posterior.Posterior({"z": z}, method="exact", model=m.model, args=(x,))
        >>> idata = pyro_dgm.to_arviz(post)
        >>> dict(arviz_adapter.get_group(idata, "posterior").sizes)
        {'chain': 4, 'draw': 25, 'data': 5, 'z_dim_0': 2}
        >>> dict(arviz_adapter.get_group(idata, "log_likelihood").sizes)
        {'chain': 4, 'draw': 25, 'data': 5}
    """
    check_seed(seed)
    check_count("num_samples", num_samples)
    check_count("chunk_size", chunk_size)
    if not isinstance(prior, bool):
        check_count("prior", prior)
    given = (tuple(args or ()), dict(kwargs or {})) if args is not None or kwargs is not None else None
    if data is not None:
        if given is not None:
            raise ValueError("give the model's arguments as data= or as args= and kwargs=, not both")
        given = split_batch(data)
    drawn_here = not isinstance(result, Posterior) and _program_of(result) is not None
    posterior = own = _posterior(result, given, num_samples, seed)
    if model is not None:
        posterior = replace(posterior, model=model)
    if given is not None:
        posterior = replace(posterior, args=given[0], kwargs=given[1])
    if not posterior.samples:
        raise ValueError("result holds no draws of any site")
    if posterior_predictive is None:
        posterior_predictive = drawn_here
    device = next(iter(posterior.samples.values())).device
    with seeded(seed, device):
        conversion = Conversion(posterior, dims or {}, coords or {}, chunk_size, own)
        return conversion.build(log_likelihood, log_prior, posterior_predictive, prior)


def _program_of(result: Any) -> Any:
    program = getattr(result, "program", result)
    if isinstance(program, tuple) and len(program) == 2 and all(callable(fn) for fn in program):
        return as_program(program)
    if isinstance(program, type):
        return None
    return program if callable(getattr(program, "model", None)) and callable(getattr(program, "guide", None)) else None


def _posterior(
    result: Any, given: tuple[tuple[Any, ...], dict[str, Any]] | None, num_samples: int, seed: int | None
) -> Posterior:
    if isinstance(result, Posterior):
        return result
    program = _program_of(result)
    if program is not None:
        if given is None:
            raise ValueError(
                f"data is needed to draw from the guide of a {type(result).__name__}: to_arviz(result, data=...)"
            )
        from pyro_dgm.infer.sample import sample_posterior

        args, kwargs = checked_arguments(program, *given, "data")
        batch = args if not kwargs else dict(inspect.signature(program.guide).bind(*args, **kwargs).arguments)
        return sample_posterior(
            program, batch, method="guide", num_samples=num_samples, num_chains=4, seed=seed, progress=False
        )
    if isinstance(getattr(result, "posterior", None), Posterior):
        return result.posterior
    if isinstance(result, pyro.infer.MCMC):
        return _from_pyro_mcmc(result)
    raise TypeError(
        "result must be a Posterior, a pyro_dgm or pyro MCMC that has been run, a fitted run or a program, "
        f"got {type(result).__name__}"
    )


def _from_pyro_mcmc(mcmc: Any) -> Posterior:
    if mcmc._samples is None:
        raise ValueError("result: this pyro.infer.MCMC has not been run")
    samples = mcmc.get_samples(group_by_chain=True)
    chains, draws = next(iter(samples.values())).shape[:2]
    stats: dict[str, Tensor] = {}
    found = [d or {} for d in mcmc._diagnostics]
    if all("divergences" in d for d in found):
        diverging = torch.zeros(chains, draws, dtype=torch.bool)
        for chain, diagnostics in enumerate(found):
            diverging[chain, list(diagnostics["divergences"])] = True
        stats["diverging"] = diverging
    attrs: dict[str, Any] = {"num_warmup": mcmc.warmup_steps}
    if all("acceptance rate" in d for d in found):
        attrs["acceptance_rate"] = [float(d["acceptance rate"]) for d in found]
    return Posterior(
        dict(samples),
        stats,
        method=type(mcmc.kernel).__name__.lower(),
        model=getattr(mcmc.kernel, "model", None),
        args=tuple(mcmc._args or ()),
        kwargs=dict(mcmc._kwargs or {}),
        attrs=attrs,
    )
