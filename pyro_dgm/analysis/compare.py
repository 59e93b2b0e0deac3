"""Estimators of one objective side by side on one program: their bias, their noise and their cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dgm.analysis.comparison import Comparison
from pyro_dgm.analysis.gradients import Moments, Parameters, find_parameters, gradient, signal_to_noise
from pyro_dgm.analysis.likelihood import LogLikelihood, exact_log_prob, log_likelihood
from pyro_dgm.analysis.memory import peak_memory
from pyro_dgm.analysis.prepared import Prepared
from pyro_dgm.infer.objectives.adapter import as_objective
from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.evaluation.evaluate import evaluate
from pyro_dgm.ops import normalized_ess
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.random_state import seeded
from pyro_dgm.programs.module_state import buffers_kept
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.parameters import local_store, module_roots

__all__ = ["compare_elbos"]


@one_at_a_time
def compare_elbos(
    program: Any,
    x: Any,
    estimators: Sequence[Any] | Mapping[str, Any],
    *,
    num_replicates: int = 50,
    num_reference_replicates: int | None = None,
    reference: str | Callable[..., Any] | None = None,
    reference_particles: int = 5000,
    seed: int | None = None,
) -> Comparison:
    r"""Compare objectives on one program and batch, at the parameters that it has now.

    Use it to choose an estimator and its number of particles before a long run, or to see late in training whether
    the gradient still has signal.  Nothing is trained: parameters, their ``.grad`` and buffers stay as they are.

    For each estimator, over R = ``num_replicates`` independent evaluations of its loss and gradient g, divided by the
    number of data N (so that gradients are those of the mean bound):

    - ``bound``, nats per datum, with its Monte Carlo standard error (over replicates; the data are fixed);
    - ``gap``: reference minus bound, nats per datum, with the standard error of both; below zero for an upper bound;
    - ``snr_model``, ``snr_guide``: for each parameter
      :math:`|\bar g| / \mathrm{sd}(g)` over replicates, averaged over parameters (Rainforth et al. 2018); parameters
      whose gradient never changes are left out.  With R + M replicates it cannot fall below about
      :math:`0.8/\sqrt{R + M}`, which is what a gradient without signal shows;
    - ``variance_model``, ``variance_guide``: mean over parameters of the variance of g;
    - ``cosine_model``, ``cosine_guide``: cosine between g and the mean of M = ``num_reference_replicates`` further
      evaluations of the *same* estimator (independent of those that it is compared with), averaged over the R.  It says
      how far one step points along the estimator's own expected gradient, not whether that gradient is biased;
    - ``ess``: effective sample size :math:`1 / \sum_k \tilde w_k^2` of K = ``num_particles`` importance weights of this
      program, mean over data, and ``ess_fraction``, over K: facts of guide and K, whatever the estimator;
    - ``seconds``: median wall time of a loss with its gradient; estimators take turns, so that a busy machine is
      shared fairly;
    - ``peak_mb``: most memory that a loss and gradient hold beyond what was there, MB (2^20 bytes), by the way that
      :func:`~pyro_dgm.analysis.memory.peak_memory` describes.

    A parameter is the guide's if the guide's samples or densities depend on it, the model's if the model's densities
    do with latents fixed; a shared one counts in both.

    :param program: a family, ``pyro_dgm.program(model, guide)`` or a ``(model, guide)`` pair.
    :param x: a batch: a tensor, or a tuple or mapping of the program's arguments.
    :param estimators: objectives of :mod:`pyro_dgm.infer`, or anything else with a differentiable loss
        that :func:`pyro_dgm.fit` takes (Pyro's ELBOs, callables of model and guide); a mapping gives them names.
    :param num_replicates: R, at least 2.
    :param num_reference_replicates: M, at least 2; as R if not given.
    :param reference: ``"exact"`` (the program's ``log_prob``), ``"iwae"`` (importance sampled with
        ``reference_particles``), or a callable of the batch giving nats for each datum (a tensor or number, or a
        :class:`~pyro_dgm.analysis.LogLikelihood`); ``"exact"`` where the program can, else ``"iwae"``, if not given.
    :param reference_particles: particles of ``"iwae"``.
    :param seed: seed of all draws; without it they take (and advance) the global generators.
    :returns: :class:`~pyro_dgm.analysis.Comparison`, a table: ``print`` it, ``.to_frame()``, ``.plot()``.
    :raises ValueError: for too few replicates, no estimators, an unknown reference, or a loss or gradient that is not
        finite (the estimator and parameter are named).

    Source: T. Rainforth et al. (2018), arXiv:1802.04537; G. Tucker et al. (2019), arXiv:1810.04152.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import DReG, IWAE
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> table = pyro_dgm.compare_elbos(m, torch.randn(8, 3), [IWAE(8), DReG(8)], num_replicates=5, seed=0)
        >>> list(table.to_frame().index)
        ['IWAE(num_particles=8)', 'DReG(num_particles=8)']
    """
    prepared = Prepared.of(program, x, seed, gradients=True)
    program, args, kwargs = prepared.program, prepared.args, prepared.kwargs
    named = named_objectives(estimators, "estimators")
    references = num_replicates if num_reference_replicates is None else num_reference_replicates
    for argument, count in (("num_replicates", num_replicates), ("num_reference_replicates", references)):
        check_count(argument, count, 2, why="a variance needs two")
    check_count("reference_particles", reference_particles, 2)
    roots = module_roots(program)
    with (
        seeded(seed, prepared.device),
        local_store(roots),
        buffers_kept(b for r in roots.values() for b in r.buffers()),
    ):
        truth = _reference(prepared, x, reference, reference_particles)
        parameters = find_parameters(program, args, kwargs)
        if not parameters.tensors:
            raise ValueError("program: neither model nor guide depends on a parameter that requires a gradient")
        with torch.no_grad():
            one = evaluate(program.model, program.guide, args, kwargs)
        num_data = one.shape.numel() * float(one.outer_scale)
        runs = [_Replicates(label, e, prepared, parameters, num_data) for label, e in named.items()]
        for run in runs:
            run.warm_up()
        for _ in range(references):
            for run in runs:
                run.step(reference=True)
        for _ in range(num_replicates):
            for run in runs:
                run.step(reference=False)
        rows = [run.row(truth) for run in runs]
    return Comparison(rows, num_data=num_data, num_replicates=num_replicates, reference=truth)


def named_objectives(objectives: Sequence[Any] | Mapping[str, Any], argument: str) -> dict[str, Objective]:
    """Objectives by a name of their own each.

    :raises ValueError: if there are none.
    :raises TypeError: for something that is no objective, or has no differentiable loss.
    """
    if isinstance(objectives, str) or not isinstance(objectives, Iterable):
        raise TypeError(
            f"{argument} must be a list of objectives, or a mapping of names to them, got {type(objectives).__name__}"
        )
    if isinstance(objectives, Mapping):
        named = {str(k): v for k, v in objectives.items()}
    else:
        named = {}
        for estimator in objectives:
            label = repr(estimator) if "object at" not in repr(estimator) else type(estimator).__name__
            unique, i = label, 2
            while unique in named:
                unique, i = f"{label} #{i}", i + 1
            named[unique] = estimator
    if not named:
        raise ValueError(f"{argument} must hold at least one objective, got none")
    adapted = {label: as_objective(estimator, f"{argument}: {label}") for label, estimator in named.items()}
    for label, objective in adapted.items():
        if not objective.differentiable:
            raise TypeError(f"{argument}: {label} ({type(objective.original).__name__}) has no differentiable_loss")
    return adapted


def _reference(prepared: Prepared, x: Any, reference: Any, num_particles: int) -> dict[str, Any]:
    program = prepared.program
    if reference is None:
        reference = "exact" if exact_log_prob(program) is not None else "iwae"
    if isinstance(reference, str):
        if reference not in ("exact", "iwae"):
            raise ValueError(f"reference must be 'exact', 'iwae' or a callable, got {reference!r}")
        found: Any = log_likelihood(program, x, method=reference, num_particles=num_particles)
        name = reference if reference == "exact" else f"iwae, {num_particles} particles"
    elif callable(reference):
        with torch.no_grad():
            found = reference(*prepared.args, **prepared.kwargs)
        name = getattr(reference, "__name__", type(reference).__name__)
    else:
        raise TypeError(f"reference must be 'exact', 'iwae' or a callable, got {type(reference).__name__}")
    if isinstance(found, LogLikelihood):
        return {"name": name, "value": found.mean, "standard_error": found.mean_standard_error}
    value = float(torch.as_tensor(found, dtype=torch.float64).mean())
    return {"name": name, "value": value, "standard_error": 0.0}


class _Replicates:
    """One estimator's evaluations, gathered as they come."""

    def __init__(
        self, label: str, estimator: Objective, prepared: Prepared, parameters: Parameters, num_data: float
    ) -> None:
        self.label, self.estimator, self.parameters, self.num_data = label, estimator, parameters, num_data
        self.program, self.args, self.kwargs = prepared.program, prepared.args, prepared.kwargs
        self.device = parameters.values[0].device
        self.num_particles = int(estimator.num_particles)
        #: the loss of an upper bound is plus the bound
        self.upper = estimator.side == "upper"
        self.sides = {side: parameters.indices(side) for side in ("model", "guide")}
        self.target, self.moments = Moments(), Moments()
        self.bounds: list[float] = []
        self.seconds: list[float] = []
        self.ess: list[float] = []
        self.cosines: dict[str, list[float]] = {"model": [], "guide": []}
        self.peak = 0

    def gradient(self) -> tuple[float, list[Tensor]]:
        def loss() -> Tensor:
            return self.estimator.differentiable_loss(self.program.model, self.program.guide, *self.args, **self.kwargs)

        return gradient(loss, self.parameters, 1.0 / self.num_data)

    def warm_up(self) -> None:
        """First calls look up the program's structure; they are not measured."""
        self.gradient()
        self.peak = peak_memory(self.gradient, self.device)

    def step(self, reference: bool) -> None:
        self._synchronize()
        start = time.perf_counter()
        loss, grads = self.gradient()
        self._synchronize()
        self.seconds.append(time.perf_counter() - start)
        if not math.isfinite(loss):
            raise ValueError(f"{self.label}: the loss is {loss}")
        for name, g in zip(self.parameters.tensors, grads, strict=True):
            if not bool(torch.isfinite(g).all()):
                raise ValueError(f"{self.label}: the gradient of parameter {name!r} is not finite")
        # Where the bound is concerned the replicates are alike.
        self.bounds.append(loss if self.upper else -loss)
        if reference:
            self.target.add(grads)
            return
        self.moments.add(grads)
        for side, indices in self.sides.items():
            if indices:
                mean = torch.cat([self.target.mean[i].flatten() for i in indices])
                g = torch.cat([grads[i].flatten().double() for i in indices])
                norms = float(mean.norm() * g.norm())
                self.cosines[side].append(float(mean @ g) / norms if norms > 0 else math.nan)
        if len(self.ess) < 10:
            self.ess.append(self._effective_sample_size())

    def _effective_sample_size(self) -> float:
        if self.num_particles == 1:
            return 1.0
        with torch.no_grad():
            log_w = evaluate(
                self.program.model, self.program.guide, self.args, self.kwargs, num_particles=self.num_particles
            ).log_weights
            return float(normalized_ess(log_w).mean())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def row(self, truth: dict[str, Any]) -> dict[str, Any]:
        bounds = np.asarray(self.bounds)
        error = float(bounds.std(ddof=1) / math.sqrt(len(bounds)))
        ess = float(np.mean(self.ess))
        row: dict[str, Any] = {
            "estimator": self.label,
            "num_particles": self.num_particles,
            "bound": float(bounds.mean()),
            "bound_se": error,
            "gap": truth["value"] - float(bounds.mean()),
            "gap_se": math.hypot(error, truth["standard_error"]),
        }
        both = self.target.merged(self.moments)
        for side, indices in self.sides.items():
            mean, variance = both.flat(indices) if indices else (torch.zeros(0), torch.zeros(0))
            row[f"snr_{side}"] = signal_to_noise(mean, variance)
            row[f"variance_{side}"] = float(variance.mean()) if indices else math.nan
            row[f"cosine_{side}"] = float(np.mean(self.cosines[side])) if indices else math.nan
        row |= {
            "ess": ess,
            "ess_fraction": ess / self.num_particles,
            "seconds": float(np.median(self.seconds)),
            "peak_mb": self.peak / 2**20,
        }
        return row
