"""What ``pyro-dgm fit`` says at the end: the bounds, and with a recipe a picture of data and samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

__all__ = ["draw", "report"]


def report(run: Any, data: Any, asked: Any, out: Any) -> dict[str, Any]:
    """Print the bounds, and give what is written beside them."""
    from pyro_dgm.analysis import log_likelihood
    from pyro_dgm.cli.fitted import bound_row
    from pyro_dgm.cli.terminal import working

    for part in ("train", "validation"):
        if run.history[part]:
            metric = run.measured[part]
            last = f"epoch {run.epochs}: {run.history[part][-1]:.3f} {metric.unit}"
            out.print(f"{part} {metric.name} of {run.objective!r}, {last}", markup=False)
    if not asked.test_particles:
        return {}
    exact = asked.recipe is not None and _is_exact(run.program)
    if not exact and not _has_guide_density(run.program):
        out.print("no likelihood of the test data: the guide has no density to weigh draws with")
        return {}
    k = asked.test_particles
    test = data.test.to(run.device)
    method = "exact" if exact else "iwae"
    doing = "exact log-likelihood of" if exact else f"bound with {k} particles on"
    with working(out, f"{doing} {len(test)} test data"):
        found = log_likelihood(run.program, test, method=method, num_particles=k, seed=asked.seed)
    name = "log-likelihood" if exact else f"IWAE-{k} bound"
    monte_carlo = "" if exact else f"{found.mean_standard_error:.3f} Monte Carlo, "
    errors = f"{monte_carlo}{found.data_standard_error:.3f} over data"
    what = f"test: {name} {found.mean:.3f} nats per datum (standard error {errors}"
    out.print(f"{what}; {data.note})", markup=False, soft_wrap=True)
    row = {
        "method": method, "num_particles": 0 if exact else k, **bound_row(found),
        "num_data": len(test), "data": data.note,
    }  # fmt: skip
    if asked.recipe is not None:
        row |= _other_units(found.mean, data, out)
    return {"test": row}


def _other_units(mean: float, data: Any, out: Any) -> dict[str, float]:
    """The same figure in the units of the file, and in bits."""
    size = math.prod(data.event_shape)
    found = {"bits_per_dim": -mean / (size * math.log(2))}
    line = f"that is {found['bits_per_dim']:.3f} bits per dimension"
    if data.standardization is not None:
        found["in_units_of_file"] = mean - data.standardization.log_scale(size)
        line += f"; in the units of the file, not standardised, {found['in_units_of_file']:.3f} nats per datum"
    out.print(line)
    return found


def _is_exact(program: Any) -> bool:
    from pyro_dgm.models import FlowModel

    return isinstance(program, FlowModel) and program.dequantize is None


def _has_guide_density(program: Any) -> bool:
    from pyro_dgm.guides import Deterministic, Implicit

    return not isinstance(getattr(program, "guide_network", None), (Deterministic, Implicit))


def draw(program: Any, data: Any, folder: Path, seed: int, out: Any) -> None:
    """Write a picture of data and samples: density.png of a table, samples.png of grey images."""
    from pyro_dgm.cli.figures import image_grid, save_png
    from pyro_dgm.cli.pair_plot import LARGEST, POINTS, pair_figure

    if data.columns:
        num = min(POINTS, len(data.train))
        shown, samples = data.train[:num], program.sample(num, seed=seed).cpu()
        if data.standardization is not None:
            shown, samples = data.standardization.undo(shown), data.standardization.undo(samples)
        density = _in_units_of_file(program, data) if _is_exact(program) else None
        path = folder / "density.png"
        save_png(pair_figure(shown, samples, data.columns, density), path)
        more = f", the first {LARGEST} of {len(data.columns)} columns" if len(data.columns) > LARGEST else ""
        out.print(f"wrote {path}: {num} data and {num} samples of the model{more}")
    elif len(data.event_shape) == 2:
        path, samples = folder / "samples.png", program.sample(64, seed=seed).cpu()
        low, high = data.train.min(), data.train.max()
        save_png(image_grid((samples - low) / (high - low), "64 samples of the model"), path)
        out.print(f"wrote {path}: 64 samples of the model")


def _in_units_of_file(program: Any, data: Any) -> Any:
    """The log-density of data as they are in the file, nats."""
    done = data.standardization

    def log_density(x: Any) -> Any:
        device = next(program.parameters()).device
        if done is None:
            return program.log_prob(x.to(device))
        found = program.log_prob(((x - done.loc.to(x)) / done.scale.to(x)).to(device))
        return found - done.log_scale(x.shape[-1])

    return log_density
