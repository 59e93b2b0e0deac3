"""What ``pyro-dgm demo`` computes: fits, held-out bounds, the comparison of estimators, posteriors."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyro_dgm.cli.errors import INTERRUPTED, CommandFailed

__all__ = ["FILES", "FULL", "QUICK", "DemoSettings", "Products", "run_demo"]

#: what the folder holds at the end, in the order in which a reader wants it
FILES = {
    "report.html": "the report: open it in a browser, it needs no other file",
    "results.json": "every figure in the report",
    "posterior.nc": "draws of HMC given held-out digits, for arviz.from_netcdf",
    "posterior_guide.nc": "the same by the guide",
    "posterior_mala.nc": "the same by MALA",
    "weights.safetensors": "weights of the chosen fit",
    "config.json": "its configuration, which rebuilds the program",
}

#: objectives that are fitted: a label and what --objective would say
OBJECTIVES = {
    "ELBO": "ELBO",
    "STL": "STL",
    "IWAE(5)": "IWAE(5)",
    "DReG(5)": "DReG(5)",
    "RenyiELBO(0.5), K=5": "RenyiELBO(5, alpha=0.5)",
    "TraceGraphELBO": "TraceGraphELBO",
}
BASELINE = "ELBO"
#: estimators that are compared on the chosen fit
ESTIMATORS = {
    "ELBO": "ELBO",
    "STL": "STL",
    "TraceGraphELBO": "TraceGraphELBO",
    "RenyiELBO(0.5), K=5": "RenyiELBO(5, alpha=0.5)",
    "IWAE(5)": "IWAE(5)",
    "IWAE(50)": "IWAE(50)",
    "DReG(5)": "DReG(5)",
    "DReG(50)": "DReG(50)",
}


@dataclass(frozen=True)
class DemoSettings:
    """How long everything runs.  ``draws`` has (draws a chain, warm-up) for each method."""

    binarization: str = "threshold"
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128,)
    epochs: int = 100
    batch_size: int = 64
    lr: float = 2e-3
    particles: int = 1000
    compare_data: int = 64
    replicates: int = 50
    reference_particles: int = 5000
    num_digits: int = 4
    num_chains: int = 4
    draws: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"guide": (1000, 0), "hmc": (1000, 400), "mala": (6000, 1000)}
    )


FULL = DemoSettings()
QUICK = DemoSettings(
    hidden=(16,), epochs=2, batch_size=256, particles=20, compare_data=8, replicates=3, reference_particles=50,
    num_digits=2, draws={"guide": (50, 0), "hmc": (50, 100), "mala": (50, 100)},
)  # fmt: skip


@dataclass
class Products:
    """What the figures are drawn from."""

    data: Any
    program: Any
    histories: dict[str, dict[str, list[float]]]
    comparison: Any
    posteriors: dict[str, Any]  # method to ArviZ's container
    rows: list[int]


def run_demo(settings: DemoSettings, output: Path, seed: int, out: Any) -> tuple[dict[str, Any], Products]:
    """Run everything, print tables, write all files but the report.

    :returns: the figures, as JSON can hold them, and what the report's figures are drawn from.
    """
    from pyro_dgm.cli.data import load_data
    from pyro_dgm.cli.posterior_check import check_posteriors
    from pyro_dgm.infer.train.checkpoints.saved_files import write_json

    began = time.perf_counter()
    data = load_data("digits", settings.binarization)
    out.print(f"{data.note}: train {len(data.train)}, validation {len(data.validation)}, test {len(data.test)}")
    runs = _fit_all(settings, data, seed, out)
    bounds = _score_all(settings, runs, data, seed, out)
    chosen = max(bounds, key=lambda row: row["validation"]["bound"])["objective"]
    _print_bounds(out, bounds, settings, data, chosen)
    _save(runs[chosen], settings, chosen, seed, output)
    comparison = _compare(settings, runs[chosen].program, data, seed, out)
    rows = _different_digits(data.test_labels, settings.num_digits)
    posteriors, check = check_posteriors(settings, runs[chosen].program, data, rows, seed, output, out)
    results = {
        "data": {"note": data.note, "name": data.name, "binarization": settings.binarization,
                 "train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        "settings": {**asdict(settings), "seed": seed},
        "program": {"family": "VAE", **runs[chosen].program.config()},
        "num_parameters": sum(p.numel() for p in runs[chosen].program.parameters()),
        "particles": settings.particles,
        "objectives": bounds,
        "baseline": BASELINE,
        "chosen": chosen,
        "comparison": {"rows": comparison.rows, "reference": comparison.reference,
                       "num_data": comparison.num_data, "num_replicates": comparison.num_replicates},
        "posterior": check,
        "versions": _versions(),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    write_json(results, output / "results.json")
    histories = {label: run.history for label, run in runs.items()}
    return results, Products(data, runs[chosen].program, histories, comparison, posteriors, rows)


def _fit_all(settings: DemoSettings, data: Any, seed: int, out: Any) -> dict[str, Any]:
    import functools

    import torch

    import pyro_dgm
    from pyro_dgm.cli.specs import parse_objective
    from pyro_dgm.cli.terminal import heading
    from pyro_dgm.ops.random_state import forked_rng

    heading(out, f"Fitting one VAE under {len(OBJECTIVES)} objectives, {settings.epochs} epochs each")
    runs = {}
    for label, spec in OBJECTIVES.items():
        with forked_rng(seed=seed):  # the same initial weights for all
            vae = pyro_dgm.models.VAE(
                event_shape=data.event_shape,
                latent_dim=settings.latent_dim,
                likelihood="bernoulli",
                hidden=settings.hidden,
            )
        runs[label] = pyro_dgm.fit(
            vae,
            data.train,
            objective=parse_objective(spec),
            optimizer=functools.partial(torch.optim.Adam, lr=settings.lr),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            validation=data.validation,
            seed=seed,
            device="cpu",
        )
        if runs[label].interrupted:
            raise CommandFailed("interrupted; the demo starts over when it is run again", INTERRUPTED)
        vae.eval()
    return runs


def _score_all(settings: DemoSettings, runs: dict[str, Any], data: Any, seed: int, out: Any) -> list[dict[str, Any]]:
    """A row for each objective: bounds on validation and test data, and the difference from the baseline."""
    from rich.progress import track

    from pyro_dgm.analysis import log_likelihood
    from pyro_dgm.cli.fitted import bound_row

    k = settings.particles
    rows, values = [], {}
    label_text = f"IWAE-{k} bounds on held-out digits"
    for label, run in track(runs.items(), description=label_text, console=out, transient=True, total=len(runs)):
        row: dict[str, Any] = {"objective": label, "spec": OBJECTIVES[label]}
        for part, x in (("validation", data.validation), ("test", data.test)):
            found = log_likelihood(run.program, x, num_particles=k, seed=seed)
            row[part] = bound_row(found)
            if part == "test":
                values[label] = found.values
                assert found.effective_sample_size is not None
                row["effective_sample_size"] = float(found.effective_sample_size.median())
        row["train_bound"], row["validation_bound"] = run.history["train"][-1], run.history["validation"][-1]
        row["seconds"] = sum(run.history["seconds"])
        rows.append(row)
    for row in rows:
        difference = values[row["objective"]] - values[BASELINE]
        row["difference"] = float(difference.mean())
        row["difference_standard_error"] = float(difference.std()) / len(difference) ** 0.5
    return rows


def _print_bounds(out: Any, rows: list[dict[str, Any]], settings: DemoSettings, data: Any, chosen: str) -> None:
    from pyro_dgm.ops.tables import plus_minus, text_table

    cells = [
        [
            row["objective"] + (" *" if row["objective"] == chosen else ""),
            plus_minus(row["test"]["bound"], row["test"]["data_standard_error"]),
            f"{row['test']['monte_carlo_standard_error']:.3f}",
            "" if row["objective"] == BASELINE else plus_minus(row["difference"], row["difference_standard_error"]),
            f"{row['validation']['bound']:.2f}",
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    columns = ["objective", "test bound", "MC error", f"minus {BASELINE}", "validation", "fit, s"]
    caption = (
        f"IWAE-{settings.particles} bounds, nats per datum, on {len(data.test)} held-out test digits ({data.note}). "
        "± one standard error over test data (of the paired difference in the fourth column); MC error: from the "
        "importance samples alone. * best on validation data: comparison and posteriors below are of this fit."
    )
    out.print(text_table(f"Held-out IWAE-{settings.particles} bound by objective", columns, cells, caption))


def _save(run: Any, settings: DemoSettings, chosen: str, seed: int, output: Path) -> None:
    from pyro_dgm.cli.fitted import FitSettings, save_fitted

    asked = FitSettings(
        dataset="digits", binarize=settings.binarization, family="VAE", family_arguments=run.program.config(),
        objective=OBJECTIVES[chosen], epochs=settings.epochs, batch_size=settings.batch_size, lr=settings.lr, seed=seed,
        device="cpu",
    )  # fmt: skip
    save_fitted(run, asked, output)


def _compare(settings: DemoSettings, program: Any, data: Any, seed: int, out: Any) -> Any:
    import pyro_dgm
    from pyro_dgm.cli.specs import parse_objective
    from pyro_dgm.cli.terminal import working

    with working(out, f"comparing {len(ESTIMATORS)} estimators"):
        comparison = pyro_dgm.compare_elbos(
            program,
            data.test[: settings.compare_data],
            {label: parse_objective(spec) for label, spec in ESTIMATORS.items()},
            num_replicates=settings.replicates,
            reference="iwae",
            reference_particles=settings.reference_particles,
            seed=seed,
        )
    out.print(comparison)
    return comparison


def _different_digits(labels: Any, count: int) -> list[int]:
    """Rows of the first test data that show different digits."""
    seen: dict[int, int] = {}
    for row, label in enumerate(labels.tolist()):
        seen.setdefault(label, row)
    return sorted(seen.values())[:count]


def _versions() -> dict[str, str]:
    import arviz
    import numpy
    import pyro
    import torch

    import pyro_dgm

    return {
        "python": platform.python_version(), "pyro_dgm": pyro_dgm.__version__, "torch": torch.__version__,
        "pyro": pyro.__version__, "arviz": arviz.__version__, "numpy": numpy.__version__,
    }  # fmt: skip
