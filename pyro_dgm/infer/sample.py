"""Draws of a program's latents given data, the inference chosen by one argument."""

from __future__ import annotations

import time
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_dgm.infer.guide_draws import Draws, GuideDraws
from pyro_dgm.infer.mcmc import KERNELS, MCMC, Kernel
from pyro_dgm.infer.mcmc.initial import device_of
from pyro_dgm.infer.mcmc.potentials.sites import latent_sites, refuse_subsampling
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.ops.arguments import check_count, check_counts, check_seed
from pyro_dgm.ops.random_state import seeded
from pyro_dgm.programs.batch import checked_batch, model_and_guide
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.parameters import evaluation_mode
from pyro_dgm.programs.structure import guide_messenger, probe

__all__ = ["sample_posterior"]

#: values of sites, over all draws of one chunk, that a guide is run for at once
CHUNK = 2**22


@one_at_a_time
def sample_posterior(
    program_or_model: Any,
    *data: Any,
    method: str | Kernel = "guide",
    num_samples: int = 1000,
    num_chains: int = 4,
    warmup_steps: int | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Posterior:
    r"""Draw a program's latents given data: by its guide, or by MCMC on its model.

    ``"guide"`` draws from :math:`q(z|x)`, at once over draws; draws are independent, and are laid out as chains so that
    what reads chains reads them too.  Its statistics are the joint log-densities ``log_p`` :math:`= \log p(x, z)` and
    ``log_q`` :math:`= \log q(z|x)` of each draw over the whole batch, in nats: their difference is the log importance
    weight.  ``"hmc"``, ``"mala"`` and kernels draw from :math:`p(z|x)` itself; see
    :class:`~pyro_dgm.infer.mcmc.MCMC` for their statistics.  ``"nuts-numpyro"`` does so by NumPyro's NUTS (the extra
    ``numpyro``), the model having become a JAX function; :func:`pyro_dgm.interop.numpyro.run_nuts` has its settings.
    Modules are in evaluation mode while drawing, and their parameters are constants.

    :param program_or_model: a program (a family of ``pyro_dgm.models``, ``pyro_dgm.program(model, guide)``), or for
        MCMC also a bare Pyro model.
    :param data: the batch: positional arguments, or one tuple, list or mapping of them.
    :param method: ``"guide"``, a name in :data:`pyro_dgm.infer.mcmc.KERNELS`, ``"nuts-numpyro"``, or a kernel
        with settings of your own (``HMC(target_accept_prob=0.9)``; leave its model out).
    :param num_samples: draws a chain.
    :param num_chains: number of chains.
    :param warmup_steps: transitions of adaptation a chain; ``num_samples`` by default; a guide has none.
    :param seed: seed of all randomness; torch's global generators are then left as they were.
    :param progress: show a progress bar on a terminal, for runs longer than two seconds.
    :returns: draws ``(num_chains, num_samples, *site_shape)`` of every latent, with statistics and data.
    :raises TypeError: if there is no model to be found, or ``method`` is neither a name nor a kernel.
    :raises ValueError: for an unknown name, a guide asked for and missing, data that the program refuses, or a program
        that the method cannot use: model and guide are checked against each other as an objective checks them.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=5, latent_dim=2)
        >>> x = torch.randn(3, 5)
        >>> pyro_dgm.sample_posterior(m, x, method="guide", num_samples=10, seed=0)
        Posterior(method='guide', {z: (4, 10, 3, 2)})
        >>> pyro_dgm.sample_posterior(m, x, method="mala", num_samples=10, seed=0, progress=False)
        Posterior(method='mala', {z: (4, 10, 3, 2)})
    """
    model, guide = model_and_guide(program_or_model)
    check_seed(seed)
    check_counts(num_samples=num_samples, num_chains=num_chains)
    check_count("warmup_steps", warmup_steps, 0, optional=True)
    batch = data[0] if len(data) == 1 else data
    args, kwargs = checked_batch(program_or_model, batch, "data", gradients=method != "guide")
    with evaluation_mode(program_or_model, model, guide):
        if isinstance(method, Kernel) or (isinstance(method, str) and method in KERNELS):
            kernel = method.with_model(model) if isinstance(method, Kernel) else KERNELS[method](model)
            mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains, seed=seed, progress=progress)
            mcmc.run(*args, **kwargs)
            return mcmc.posterior
        if method == "nuts-numpyro":
            from pyro_dgm.interop.jax_density import to_jax
            from pyro_dgm.interop.numpyro_nuts import run_nuts

            density = to_jax(model, *args, **kwargs)
            return run_nuts(density, num_samples, warmup_steps, num_chains, seed=seed, progress=progress)
        wanted = f"method must be 'guide', one of {sorted(KERNELS)}, 'nuts-numpyro', or a kernel instance"
        if not isinstance(method, str):
            raise TypeError(f"{wanted}, got {method!r}")
        if method != "guide":
            raise ValueError(f"{wanted}, got {method!r}")
        if guide is None:
            raise ValueError(
                "method='guide' needs a program with a guide, got a model alone; "
                "use method='hmc', or program(model, guide)"
            )
        return _from_guide(model, guide, args, kwargs, num_samples, num_chains, seed)


def _from_guide(
    model: Any, guide: Any, args: tuple, kwargs: dict, num_samples: int, num_chains: int, seed: int | None
) -> Posterior:
    began = time.perf_counter()
    device = device_of(model, args, kwargs)
    with torch.no_grad(), poutine.block(), seeded(seed, device):
        structure = probe(model, guide, args, kwargs)  # builds a lazy guide; what follows runs without validation
        with pyro.validation_enabled(False):
            samples, log_p, log_q = _draw(Pair(model, guide, args, kwargs, structure), num_samples * num_chains)
    shape = (num_chains, num_samples)
    return Posterior(
        samples={k: v.reshape(*shape, *v.shape[1:]) for k, v in samples.items()},
        sample_stats={"log_p": log_p.reshape(shape), "log_q": log_q.reshape(shape)},
        method="guide",
        model=model,
        args=args,
        kwargs=kwargs,
        attrs={"num_warmup": 0, "seconds": time.perf_counter() - began, "seed": seed},
    )


def _draw(pair: Pair, total: int) -> Draws:
    # The first run shows what there is to draw.
    with pair.structure.gradients():
        guide_trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
        if guide_messenger(pair.guide) is None:
            replayed = poutine.replay(pair.model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)
        else:
            model_trace = guide_trace  # it has run its model, and that trace has the model's plates
    refuse_subsampling(model_trace, "a posterior draw")
    names = list(latent_sites(model_trace))
    missing = [name for name in names if name not in guide_trace]
    if missing:
        raise ValueError(
            f"the guide has no site for the latents {missing}; sum them out in the model, or add them to the guide"
        )
    values = (site.get("value") for site in model_trace.nodes.values())
    width = sum(value.numel() for value in values if isinstance(value, Tensor))
    shapes = {name: torch.as_tensor(model_trace.nodes[name]["value"]).shape for name in names}
    return GuideDraws(pair, shapes).many(total, max(1, CHUNK // max(1, width)))
