"""Objectives for energies side by side on one density of two dimensions: how near they come, and how dear they are."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.analysis.compare import named_objectives
from pyro_dgm.analysis.density_grid import DensityGrid
from pyro_dgm.analysis.energy_comparison import EnergyComparison
from pyro_dgm.infer.mcmc.initial import device_of
from pyro_dgm.infer.objectives.energies import DenoisingScoreMatching, EnergyObjective
from pyro_dgm.infer.train.fit import fit
from pyro_dgm.ops.arguments import check_count, check_seed
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import as_program
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.parameters import module_roots

__all__ = ["compare_energies"]

#: how far from 1 a target may integrate on the grid
INTEGRAL_TOLERANCE = 0.01
#: mass in the outermost cells above which a density is said to reach beyond the grid
EDGE_MASS = 1e-3


@one_at_a_time
def compare_energies(
    program_factory: Callable[[], Any],
    x: Tensor,
    objectives: Sequence[Any] | Mapping[str, Any],
    *,
    log_density: Callable[[Tensor], Tensor] | None = None,
    held_out: Tensor | None = None,
    bounds: Sequence[Sequence[float]] | None = None,
    grid_size: int = 200,
    epochs: int = 50,
    seed: int | None = None,
    **fit_options: Any,
) -> EnergyComparison:
    r"""Train one energy-based program under each objective, and compare the densities that they learn.

    Use it on data of two dimensions to see what an objective does before it is used where nothing can be seen: there
    :math:`Z` is a sum over a grid, and a density that is known up to a constant can be held against the one that the
    data are from.  All begin at the same weights, see the same batches, and have the same settings.

    For each objective:

    - ``kl``, :math:`\mathrm{KL}(p \,\|\, p_\theta) = \int p \log (p / p_\theta)` of the target from the model, nats;
    - ``tv``, total variation :math:`\frac12 \int |p - p_\theta|`, the error of the density, in [0, 1];
    - ``blur``, ``kl_blurred``, ``tv_blurred``: for :class:`~pyro_dgm.infer.DenoisingScoreMatching`, the noise level of
      the density that it learns, and the same errors against the target with that noise added: what it could reach;
    - ``log_likelihood``, mean log-density of ``held_out`` data, nats per datum, and its standard error
      ``log_likelihood_se`` over the data;
    - ``log_z``, the energy's log normaliser on the grid, and ``log_z_learned``, what the objective itself has found for
      it (:class:`~pyro_dgm.infer.NoiseContrastive`), nats;
    - ``edge``: mass of the model's density in the outermost cells.  Above 1e-3 a warning says that it reaches beyond
      the grid, so that the numbers flatter it;
    - ``seconds``: of the CPU, in training;
    - ``failure``: why there are no numbers.  An objective that meets an energy that is not finite, or refuses the
      program, is a row that says so.

    What does not apply is NaN.

    :param program_factory: makes a program with one observed site of unnormalised density and event shape (2,), such as
        ``lambda: pyro_dgm.models.EBM((2,))``; called once for each objective, its random numbers the same each time.
    :param x: training data, ``(N, 2)``.
    :param objectives: for energies, such as :class:`~pyro_dgm.infer.PersistentCD`; a mapping gives them names.
    :param log_density: :math:`\log p` of the data's law, normalised, from ``(M, 2)`` to ``(M,)``, nats.
    :param held_out: data to score, ``(M, 2)``; wanted where ``log_density`` is not known.
    :param bounds: of the grid, ``(low, high)`` of either coordinate; by default the data's range, and three tenths of
        it beyond on every side.
    :param grid_size: cells along either coordinate.
    :param epochs: of :func:`pyro_dgm.fit`.
    :param seed: of initial weights and training; without it one is drawn from torch's global generator.
    :param fit_options: more arguments of :func:`pyro_dgm.fit`, the same for all: ``optimizer``, ``batch_size``, ...
    :returns: :class:`~pyro_dgm.analysis.EnergyComparison`, a table: ``print`` it, ``.to_frame()``, ``.plot()``;
        ``.programs`` has the trained programs.
    :raises TypeError: for a program in place of what makes one, or an objective that is none for energies.
    :raises ValueError: for data, bounds or a grid that do not fit, a target that does not integrate to 1 on the grid
        within 1 %, programs that share parameters, or if every objective fails.

    Source: errors of 2-D densities by normalising energies numerically are common in the literature on energies, e.g.
    W. Grathwohl et al. (2020), "Learning the Stein discrepancy for training and evaluating energy-based models without
    sampling", arXiv:2002.05616.

    Example::

        >>> import pyro.distributions as dist, torch, pyro_dgm
        >>> from pyro_dgm.infer import NoiseContrastive, ScoreMatching
        >>> _ = torch.manual_seed(0)
        >>> law = dist.Normal(torch.zeros(2), 0.5).to_event(1)
        >>> table = pyro_dgm.analysis.compare_energies(
        ...     lambda: pyro_dgm.models.EBM((2,), hidden=(16,)), law.sample((200,)),
        ...     {"SM": ScoreMatching(), "NCE": NoiseContrastive()}, log_density=law.log_prob,
        ...     bounds=[(-3, 3), (-3, 3)], epochs=5, seed=0,
        ... )
        >>> list(table.to_frame().index)
        ['SM', 'NCE']
    """
    named = named_objectives(objectives, "objectives")
    energies: dict[str, EnergyObjective] = {}
    for label, objective in named.items():
        if not isinstance(objective, EnergyObjective):
            raise TypeError(f"objectives: {label} ({type(objective.original).__name__}) is no objective for energies")
        energies[label] = objective
    if not callable(program_factory) or hasattr(program_factory, "model"):
        raise TypeError(
            "program_factory must be a function without arguments that makes a program, as lambda: EBM((2,)), got "
            f"{type(program_factory).__name__}"
        )
    for argument, data in (("x", x), ("held_out", held_out)):
        if data is not None:
            _check_data(argument, data)
    if log_density is None and held_out is None:
        raise ValueError("give log_density, or held_out data where it is not known: there is nothing to compare with")
    check_count("epochs", epochs)
    check_seed(seed)
    grid = DensityGrid.make(bounds, grid_size, x)
    target = None if log_density is None else _target(log_density, grid, x)
    plane = _Plane(x, held_out, target, grid)
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    programs: dict[str, Any] = {}
    densities: dict[str, Tensor] = {}
    rows = []
    for label, energy_objective in energies.items():
        with forked_rng(x.device, seed):
            programs[label] = as_program(program_factory())
        _check_new(programs)
        options = {"progress": False, "seed": seed, "epochs": epochs, **fit_options}
        row, density = _train(label, programs[label], energy_objective, plane, options)
        rows.append(row)
        if density is not None:
            densities[label] = density
    if not densities:
        raise ValueError("every objective failed: " + "; ".join(f"{r['objective']}: {r['failure']}" for r in rows))
    return EnergyComparison(
        rows, programs=programs, densities=densities, target=target, data=x, grid=grid, epochs=epochs
    )


def _check_data(argument: str, data: Any) -> None:
    if not isinstance(data, Tensor) or not torch.is_floating_point(data):
        got = data.dtype if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"{argument} must be a floating point tensor, got {got}")
    if data.dim() != 2 or data.shape[1] != 2 or len(data) < 2:
        raise ValueError(f"{argument} must be data of two dimensions, (N, 2), got shape {tuple(data.shape)}")
    if not bool(torch.isfinite(data).all()):
        raise ValueError(f"{argument} holds {int((~torch.isfinite(data)).sum())} values that are not finite")


def _target(log_density: Callable[[Tensor], Tensor], grid: DensityGrid, x: Tensor) -> Tensor:
    values = grid.evaluate(log_density, x)
    total = grid.log_integral(values)
    if not abs(math.exp(min(total, 700.0)) - 1.0) < INTEGRAL_TOLERANCE:
        raise ValueError(
            f"log_density integrates to {math.exp(min(total, 700.0)):.4g} on the grid {grid.bounds} of {grid.size} "
            "cells squared: it must be normalised, with its mass inside the bounds and no feature finer than a cell"
        )
    return values - total


def _check_new(programs: Mapping[str, Any]) -> None:
    *before, last = programs.values()
    held = {id(p) for program in before for root in module_roots(program).values() for p in root.parameters()}
    if any(id(p) in held for root in module_roots(last).values() for p in root.parameters()):
        raise ValueError("program_factory must make a new program at each call, but two share parameters")


@dataclass(frozen=True)
class _Plane:
    """What all are trained on, and compared with."""

    x: Tensor
    held_out: Tensor | None
    target: Tensor | None
    grid: DensityGrid


def _train(
    label: str, program: Any, objective: EnergyObjective, plane: _Plane, options: dict[str, Any]
) -> tuple[dict[str, Any], Tensor | None]:
    """Train it; its row, and its normalised log-density on the grid, if there is one."""
    keys = ("kl", "tv", "blur", "kl_blurred", "tv_blurred", "log_likelihood", "log_likelihood_se", "log_z",
            "log_z_learned", "edge")  # fmt: skip
    row: dict[str, Any] = {"objective": label, **dict.fromkeys(keys, math.nan), "seconds": math.nan, "failure": ""}
    density = None
    began = time.process_time()
    try:
        fit(program, plane.x, objective=objective, **options)
    except (FloatingPointError, ValueError) as error:
        row["failure"] = str(error)
    row["seconds"] = time.process_time() - began
    if not row["failure"]:
        density = _measure(row, program, objective, plane)
    return row, density


def _measure(row: dict[str, Any], program: Any, objective: EnergyObjective, plane: _Plane) -> Tensor | None:
    grid, target = plane.grid, plane.target
    like = plane.x.to(device_of(program.model, (plane.x[:2],), {}))

    def log_prob(points: Tensor) -> Tensor:
        site = EnergyObjective.energy_site(objective, program.model, (points,), {})
        return site.distribution.log_prob(site.value)

    values = grid.evaluate(log_prob, like)
    if not bool(torch.isfinite(values).all()):
        bad = ~torch.isfinite(values)
        row["failure"] = f"the energy is {-float(values[bad][0])} at {int(bad.sum())} of {bad.numel()} grid points"
        return None
    row["log_z"] = grid.log_integral(values)
    density = values - row["log_z"]
    row["edge"] = grid.edge_mass(density)
    if row["edge"] > EDGE_MASS:
        warnings.warn(
            f"{row['objective']}: {row['edge']:.2g} of the density's mass is in the outermost cells of the grid: it "
            "reaches beyond; give wider bounds",
            RuntimeWarning,
            stacklevel=4,
        )
    learned = getattr(objective, "log_normalizer", None)
    row["log_z_learned"] = math.nan if learned is None else float(learned)
    blur = None
    if isinstance(objective, DenoisingScoreMatching):
        law = EnergyObjective.energy_site(objective, program.model, (like[:2],), {}).distribution
        blur = row["blur"] = getattr(law, "noise_level", None) or min(objective.noise_levels)
    if target is not None:
        row |= {"kl": grid.kl(target, density), "tv": grid.total_variation(target, density)}
        if blur is not None:
            blurred = grid.blurred(target, blur)
            row |= {"kl_blurred": grid.kl(blurred, density), "tv_blurred": grid.total_variation(blurred, density)}
    if plane.held_out is not None:
        with torch.no_grad():
            scores = log_prob(plane.held_out.to(like)).double() - row["log_z"]
        row |= {"log_likelihood": float(scores.mean()), "log_likelihood_se": float(scores.std() / len(scores) ** 0.5)}
    return density
