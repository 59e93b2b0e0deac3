"""Draws of a program's latents given data, the inference chosen by one argument."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dgm.infer.batch import checked_batch, model_and_guide
from pyro_dgm.infer.elbo.structure import guide_messenger, probe
from pyro_dgm.infer.mcmc import KERNELS, MCMC, Kernel
from pyro_dgm.infer.mcmc.initial import device_of
from pyro_dgm.infer.mcmc.sites import latent_sites, refuse_subsampling
from pyro_dgm.infer.parameters import evaluation_mode
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.infer.random_state import forked_rng
from pyro_dgm.ops.arguments import check_count, check_seed

__all__ = ["sample_posterior"]

#: values of sites, over all draws of one chunk, that a guide is run for at once
CHUNK = 2**22


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
    for argument, value in (("num_samples", num_samples), ("num_chains", num_chains)):
        check_count(argument, value)
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
            from pyro_dgm.interop.numpyro import run_nuts, to_jax

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
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_samples: int,
    num_chains: int,
    seed: int | None,
) -> Posterior:
    began = time.perf_counter()
    device = device_of(model, args, kwargs)
    with torch.no_grad(), poutine.block(), nullcontext() if seed is None else forked_rng(device, seed):
        probe(model, guide, args, kwargs)  # builds a lazy guide; everything after it runs without validation
        with pyro.validation_enabled(False):
            samples, log_p, log_q = _draw(model, guide, args, kwargs, num_samples * num_chains)
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


Draws = tuple[dict[str, Tensor], Tensor, Tensor]


def _draw(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], total: int
) -> Draws:
    # The first run shows what there is to draw.
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    if guide_messenger(guide) is None:
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
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
    drawer = _GuideDraws(model, guide, args, kwargs, guide_trace, names)
    return drawer.many(total, max(1, CHUNK // max(1, width)))


class _GuideDraws:
    """Independent draws from a guide with their log-densities, vectorised where the program can be.

    The guide draws inside an outer plate; the densities are then taken draw by draw under ``vmap``, which needs nothing
    of the model's shapes.  A guide that mixes draws (it reduces over dimensions that are not its own) shows in a
    log-density that differs between the two, and is run draw by draw.  A ``GuideMessenger`` guide runs the model
    itself, and its two traces are taken from it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prototype: Any,
        names: list[str],
    ) -> None:
        self.model, self.guide, self.args, self.kwargs, self.names = model, guide, args, kwargs, names
        self.messenger = guide_messenger(guide)
        # A Delta site is computed, not drawn; giving it its value back would compare floats for equality.
        self.drawn = {n: s for n, s in latent_sites(prototype).items() if not _is_delta(s["fn"])}
        dims = [
            f.dim
            for s in prototype.nodes.values()
            if s["type"] == "sample"
            for f in s["cond_indep_stack"]
            if f.vectorized
        ]
        self.dim = min(dims, default=0) - 1

    def many(self, total: int, chunk: int) -> Draws:
        """``total`` draws, at most ``chunk`` at once."""
        counts = [min(chunk, total - start) for start in range(0, total, chunk)]
        try:
            parts = [self._together(n) for n in counts]
        except Exception as error:
            parts = [self._one({}) for _ in range(total)]  # the program's own errors are raised here
            parts = [({k: v[None] for k, v in z.items()}, p[None], q[None]) for z, p, q in parts]
            reason = str(error).strip().split("\n")[0][:200]
            warnings.warn(
                f"the program cannot be vectorised over draws and runs draw by draw: {reason}",
                RuntimeWarning,
                stacklevel=5,
            )
        samples = {k: torch.cat([p[0][k] for p in parts]) for k in self.names}
        return samples, torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])

    def _guide_trace(self) -> Any:
        if self.messenger is None:
            return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        self.guide(*self.args, **self.kwargs)
        return self.messenger.get_traces()[1]

    def _one(self, values: dict[str, Tensor]) -> Draws:
        """One draw; sites in ``values`` are given."""
        with _Given(values):
            q = self._guide_trace()
        if self.messenger is None:
            p = poutine.trace(poutine.replay(self.model, trace=q)).get_trace(*self.args, **self.kwargs)
        else:
            p, q = self.messenger.get_traces()
        found = latent_sites(p)
        changed = sorted(set(found) ^ set(self.names))
        if changed:
            raise ValueError(
                f"the latent sites {changed} are in some draws of the guide and not in others, so draws cannot be put "
                "together in arrays: give the guide the same sites on every run, or condition on what decides them"
            )
        return (
            {name: torch.as_tensor(found[name]["value"]) for name in self.names},
            torch.as_tensor(p.log_prob_sum()),
            torch.as_tensor(q.log_prob_sum()),
        )

    def _together(self, count: int) -> Draws:
        with pyro.plate("_draws", count, dim=self.dim):
            trace = self._guide_trace()
        trace.compute_log_prob()
        values: dict[str, Tensor] = {}
        for name, site in self.drawn.items():
            shape, value = site["value"].shape, torch.as_tensor(trace.nodes[name]["value"])
            if value.numel() != count * shape.numel():
                raise ValueError(
                    f"inside an outer plate, site {name!r} has shape {tuple(value.shape)}, "
                    f"not {count} times {tuple(shape)}"
                )
            values[name] = value.reshape(count, *shape)
        log_q = torch.zeros((), device=next(iter(values.values())).device) if values else torch.zeros(())
        for site in latent_sites(trace).values():
            log_prob = site["log_prob"]
            log_q = log_q + (log_prob.reshape(count, -1).sum(-1) if log_prob.numel() >= count else log_prob.sum())
        samples, log_p, exact = torch.func.vmap(self._one)(values)
        if not torch.allclose(log_q.expand_as(exact).to(exact.dtype), exact, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                "the guide's log-density inside an outer plate is not that of single draws: "
                "it reduces over the plate's dimension"
            )
        return samples, log_p, exact


class _Given(Messenger):
    """Give sites their values and leave all else of them as it is: replay would take a messenger's prior away."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def _is_delta(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)
