"""The demo's report: one HTML page with everything inlined."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyro_dgm.cli import figures
from pyro_dgm.cli.demo_run import BASELINE, FILES, Products
from pyro_dgm.cli.posterior_check import NAMES, REFERENCE, sentences

__all__ = ["make_figures", "render", "write_report"]

NUM_RECONSTRUCTIONS = 16
NUM_PRIOR = 64
NUM_CHAIN_PLOTS = 4


def make_figures(results: dict[str, Any], products: Products) -> dict[str, Any]:
    """All figures of the report by name."""
    import torch

    data, program = products.data, products.program
    shape = data.event_shape
    with torch.no_grad():
        loc, _ = program.encode(data.test)
        reconstructions = program.decode(loc[:NUM_RECONSTRUCTIONS])
    comparison = products.comparison.plot()
    means, values = figures.draw_prior(program, NUM_PRIOR, results["settings"]["seed"])
    return {
        "training": figures.training_figure(products.histories),
        "bounds": figures.bounds_figure(results["objectives"], BASELINE),
        "comparison": comparison,
        "reconstructions": figures.reconstruction_figure(data.test[:NUM_RECONSTRUCTIONS], reconstructions),
        "prior": figures.prior_figure(means.reshape(-1, *shape), values.reshape(-1, *shape)),
        "latent": figures.latent_figure(loc, data.test_labels),
        "agreement": figures.agreement_figure(results["posterior"]["table"]),
        **_chain_figures(products),
    }


def _chain_figures(products: Products) -> dict[str, Any]:
    """ArviZ's trace and rank plots of one digit's latents."""
    import matplotlib

    backend = matplotlib.get_backend()
    matplotlib.use("Agg")  # ArviZ draws with pyplot, and nothing is to be shown
    import matplotlib.pyplot as plt

    from pyro_dgm.analysis import arviz_adapter

    made = {}
    try:
        for method in ("hmc", "mala"):
            z = arviz_adapter.get_group(products.posteriors[method], "posterior")["z"].isel(data=0)
            z = z.transpose("chain", "draw", "latent").values
            # A variable each: ArviZ would draw the dimensions of one variable over each other.
            shown = min(NUM_CHAIN_PLOTS, z.shape[2])
            few = arviz_adapter.build({"posterior": {f"z[{j}]": z[:, :, j] for j in range(shown)}})
            for kind, draw in (("trace", arviz_adapter.plot_trace), ("rank", arviz_adapter.plot_rank)):
                made[f"{kind}_{method}"] = draw(few)
                figures.tidy_chain_figure(made[f"{kind}_{method}"], shown)
        for figure in made.values():
            plt.close(figure)
    finally:
        matplotlib.use(backend)
    return made


def render(results: dict[str, Any], images: dict[str, str]) -> str:
    """The page, from figures as ``data:`` addresses."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pyro_dgm.cli"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fixed"] = lambda value, digits=2: (
        "–" if value is None else f"{value:.{digits}f}".replace("-", "−")
    )
    environment.filters["short"] = lambda value: f"{value:.2g}".replace("-", "−")
    return environment.get_template("report.html").render(
        r=results, images=images, names=NAMES, reference=REFERENCE, files=FILES, baseline=BASELINE,
        sentences=sentences(results["posterior"]["agreement"]), snr=_snr(results["comparison"]["rows"]),
    )  # fmt: skip


def _snr(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The guide's gradient SNR with 5 and 50 particles, of the two estimators of one bound."""
    by_name = {row["estimator"]: row["snr_guide"] for row in rows}
    return {name.lower(): [by_name[f"{name}({k})"] for k in (5, 50)] for name in ("IWAE", "DReG")}


def write_report(results: dict[str, Any], products: Products, path: Path) -> None:
    """Draw the figures and write the page, whole or not at all."""
    images = {name: figures.data_uri(figure) for name, figure in make_figures(results, products).items()}
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(render(results, images), encoding="utf-8")
    os.replace(temporary, path)
