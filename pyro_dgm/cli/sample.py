"""``pyro-dgm sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_dgm.cli.errors import UsageError, guarded
from pyro_dgm.cli.options import check_output

__all__ = ["sample"]


@guarded
def sample(
    directory: Annotated[Path, typer.Argument(help="Folder that pyro-dgm fit or demo wrote.", metavar="RUN")],
    rows: Annotated[
        str | None,
        typer.Option(help="Draw latents given these data, as 0,3,7 or 0:8. Without it data are drawn from the model."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which data --rows counts in: train, validation or test.")] = "test",
    method: Annotated[str, typer.Option(help="guide; hmc, chees, mala, mclmc, ...; or nuts-numpyro.")] = "guide",
    num_samples: Annotated[int, typer.Option(min=4, help="Posterior draws a chain.")] = 1000,
    num_chains: Annotated[int, typer.Option(min=1, help="Chains.")] = 4,
    warmup_steps: Annotated[int | None, typer.Option(min=0, help="Transitions in which a kernel adapts.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Data drawn from the model.")] = 64,
    mean: Annotated[bool, typer.Option(help="Show the mean of p(x|z), not a draw of x.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write. [default: RUN/samples.png, RUN/samples.csv or RUN/posterior-METHOD.nc]",
        ),
    ] = None,
) -> None:
    """Draw from a fitted program: data from the model, or latents given data.

    Data from the model are written as a grid of images (PNG), or as a table (CSV) in the units of the file that the
    model was fitted to; latents given data as an ArviZ file (netCDF) with the
    groups posterior, posterior_predictive, log_likelihood, log_prior, sample_stats and observed_data.

    **Examples**

    - `pyro-dgm sample runs/demo --num 100 --output prior.png`
    - `pyro-dgm sample runs/demo --rows 0:8 --method hmc --output posterior.nc`

    - `python -c "import arviz; print(arviz.summary(arviz.from_netcdf('posterior.nc')))"`

    **Exit codes**: 0 done; 1 data missing; 2 bad usage; 130 interrupted
    """
    from pyro_dgm.cli.fitted import load_fitted

    if method not in (methods := _methods()):
        raise UsageError(f"--method: there is no {method!r}; there are {', '.join(methods)}")
    check_output(output, *((".png", ".csv") if rows is None else (".nc",)))
    fitted = load_fitted(directory)
    if rows is None:
        suffix = ".csv" if fitted.data.columns else ".png"
        check_output(output, suffix)
        path = output or directory / f"samples{suffix}"
        _table(fitted, num, seed, path) if fitted.data.columns else _prior(fitted, num, mean, seed, path)
        return
    _posterior(
        fitted, rows, split, output or directory / f"posterior-{method}.nc",
        method=method, num_samples=num_samples, num_chains=num_chains, warmup_steps=warmup_steps, seed=seed,
    )  # fmt: skip


def _methods() -> list[str]:
    from pyro_dgm.infer.mcmc import KERNELS

    return ["guide", *KERNELS, "nuts-numpyro"]


def _table(fitted: Any, num: int, seed: int, path: Path) -> None:
    import pandas

    from pyro_dgm.cli.terminal import console

    x = fitted.program.sample(num, seed=seed).cpu()
    if fitted.data.standardization is not None:
        x = fitted.data.standardization.undo(x)
    pandas.DataFrame(x.numpy(), columns=fitted.data.columns).to_csv(path, index=False)
    console().print(f"wrote {path}: {num} draws from the model, in the units of {fitted.data.name}")


def _prior(fitted: Any, num: int, mean: bool, seed: int, path: Path) -> None:
    from pyro_dgm.cli.figures import draw_prior, image_grid, save_png
    from pyro_dgm.cli.terminal import console

    shape = fitted.data.event_shape
    if len(shape) != 2:
        raise UsageError(f"data of shape {shape} are no grey images, and only these can be shown")
    means, values = draw_prior(fitted.program, num, seed)
    what = "means of p(x|z)" if mean else "draws of x"
    images = (means if mean else values).reshape(num, *shape)
    save_png(image_grid(images, f"{num} draws from the model, {what}"), path)
    console().print(f"wrote {path}: {num} draws from the model, {what}")


def _posterior(fitted: Any, rows: str, split: str, path: Path, **options: Any) -> None:
    import pyro_dgm
    from pyro_dgm.analysis import arviz_adapter
    from pyro_dgm.cli.specs import parse_rows
    from pyro_dgm.cli.terminal import console

    parts = {"train": fitted.data.train, "validation": fitted.data.validation, "test": fitted.data.test}
    if split not in parts or parts[split] is None:
        raise UsageError(
            f"--split: there is no {split!r}; there are {', '.join(k for k, v in parts.items() if v is not None)}"
        )
    chosen = parse_rows(rows, len(parts[split]))
    x = parts[split][chosen]
    if split != "test" and fitted.data.transform is not None:
        import torch

        from pyro_dgm.datasets import dynamic_binarization

        x = dynamic_binarization(x, torch.Generator().manual_seed(options["seed"]))
    out = console()
    try:
        post = pyro_dgm.sample_posterior(fitted.program, x, **options)
    except ImportError as error:  # an extra's: the message says which
        raise UsageError(f"--method {options['method']}: {error}") from error
    idata = pyro_dgm.to_arviz(post, coords={"data": chosen}, posterior_predictive=True, seed=options["seed"])
    arviz_adapter.to_netcdf(idata, path)
    rhat, ess = arviz_adapter.rhat(idata), arviz_adapter.ess(idata)
    worst = max(float(v.max()) for v in rhat.values())
    least = min(float(v.min()) for v in ess.values())
    out.print(
        f"wrote {path}: {post.num_chains} chains of {post.num_draws} draws by {options['method']} given {len(chosen)} "
        f"of the {split} data; largest R-hat {worst:.3f}, least bulk ESS {least:.0f}"
    )
    if worst > 1.01:
        out.print("R-hat is above 1.01: the chains do not agree yet; draw more (--num-samples, --warmup-steps)")
