"""Latents of held-out data by guide, HMC and MALA, and the guide held against HMC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["check_posteriors", "moments"]

REFERENCE = "hmc"
NAMES = {"guide": "guide", "hmc": "HMC", "mala": "MALA"}


def moments(idata: Any) -> dict[str, Any]:
    """Mean and standard deviation of each element of ``z`` with their Monte Carlo standard errors, R-hat and ESS.

    The error of a mean is sd / sqrt(ESS of the mean); that of a standard deviation follows from that of the variance by
    the delta method, with the ESS of the squared deviations.  Arrays are (data, latent).
    """
    import numpy as np

    from pyro_dgm.analysis import arviz_adapter as adapter

    z = adapter.get_group(idata, "posterior")["z"].transpose("chain", "draw", "data", "latent").values.astype(float)
    draws = z.reshape(-1, *z.shape[2:])
    mean, sd = draws.mean(0), draws.std(0, ddof=1)

    def found(dataset: Any) -> Any:
        return dataset["z"].transpose("data", "latent").values.astype(float)

    ess_mean, ess_sd = found(adapter.ess(idata, method="mean")), found(adapter.ess(idata, method="sd"))
    variance_error = np.square(draws - mean).std(0, ddof=1) / np.sqrt(ess_sd)
    return {
        "mean": mean,
        "mean_error": sd / np.sqrt(ess_mean),
        "sd": sd,
        "sd_error": variance_error / (2 * sd),
        "rhat": found(adapter.rhat(idata)),
        "ess_bulk": found(adapter.ess(idata, method="bulk")),
        "ess_tail": found(adapter.ess(idata, method="tail")),
    }


def check_posteriors(
    settings: Any, program: Any, data: Any, rows: list[int], seed: int, output: Path, out: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw, write the netCDF files, print tables.

    :returns: ArviZ's container for each method, and the figures as JSON can hold them.
    """
    import pyro_dgm
    from pyro_dgm.analysis import arviz_adapter
    from pyro_dgm.cli.terminal import working

    x = data.test[rows]
    idatas: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    methods = []
    for method, (draws, warmup) in settings.draws.items():
        with working(out, f"drawing latents of {len(rows)} held-out digits: {NAMES[method]}"):
            post = pyro_dgm.sample_posterior(
                program, x, method=method, num_samples=draws, warmup_steps=warmup, num_chains=settings.num_chains,
                seed=seed + 1, progress=False,
            )  # fmt: skip
            if post.attrs.get("interrupted"):
                raise KeyboardInterrupt
            idatas[method] = pyro_dgm.to_arviz(
                post,
                dims={"z": ["latent"]},
                coords={"data": rows},
                posterior_predictive=method == REFERENCE,
                seed=seed + 2,
            )
            name = "posterior.nc" if method == REFERENCE else f"posterior_{method}.nc"
            arviz_adapter.to_netcdf(idatas[method], output / name)
            found[method] = moments(idatas[method])
        methods.append(_method_row(method, post, found[method], warmup))
    labels = data.test_labels[rows].tolist()
    table = _rows(found, rows, labels)
    agreement = _agreement(found)
    _print(out, methods, table, agreement)
    check = {"rows": rows, "labels": labels, "methods": methods, "table": table, "agreement": agreement}
    return idatas, check


def _method_row(method: str, post: Any, found: dict[str, Any], warmup: int) -> dict[str, Any]:
    stats = {k: v.double() for k, v in post.sample_stats.items()}
    seconds = float(post.attrs["seconds"])
    return {
        "method": method,
        "chains": post.num_chains,
        "draws": post.num_draws,
        "warmup": warmup,
        "rhat_max": float(found["rhat"].max()),
        "ess_bulk_min": float(found["ess_bulk"].min()),
        "ess_tail_min": float(found["ess_tail"].min()),
        "divergences": int(stats["diverging"].sum()) if "diverging" in stats else None,
        "acceptance_rate": float(stats["acceptance_rate"].mean()) if "acceptance_rate" in stats else None,
        "gradients_per_draw": float(stats["n_steps"].mean()) if "n_steps" in stats else None,
        "seconds": seconds,
        "ess_per_second": float(found["ess_bulk"].min()) / seconds,
    }


def _rows(found: dict[str, dict[str, Any]], rows: list[int], labels: list[int]) -> list[dict[str, Any]]:
    """A row for each digit and latent dimension."""
    table = []
    reference = found[REFERENCE]
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        for j in range(reference["mean"].shape[1]):
            entry: dict[str, Any] = {"row": row, "digit": label, "latent": j}
            for method, values in found.items():
                entry[method] = {key: float(value[i, j]) for key, value in values.items()}
            guide, hmc = entry["guide"], entry[REFERENCE]
            entry["shift"] = (guide["mean"] - hmc["mean"]) / hmc["sd"]
            entry["sd_ratio"] = guide["sd"] / hmc["sd"]
            table.append(entry)
    return table


def _agreement(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How far the guide is from HMC in units of the posterior, and MALA from HMC in units of Monte Carlo error.

    The two samplers have one target, so that their differences are Monte Carlo error; the guide has its own.
    """
    import numpy as np

    hmc, mala, guide = found[REFERENCE], found["mala"], found["guide"]
    z_mean = (mala["mean"] - hmc["mean"]) / np.hypot(mala["mean_error"], hmc["mean_error"])
    z_sd = (mala["sd"] - hmc["sd"]) / np.hypot(mala["sd_error"], hmc["sd_error"])
    shift = (guide["mean"] - hmc["mean"]) / hmc["sd"]
    ratio = guide["sd"] / hmc["sd"]
    return {
        "comparisons": int(z_mean.size),
        "mala_mean_z_max": float(np.abs(z_mean).max()),
        "mala_mean_z_rms": float(np.sqrt(np.square(z_mean).mean())),
        "mala_sd_z_max": float(np.abs(z_sd).max()),
        "guide_shift_rms": float(np.sqrt(np.square(shift).mean())),
        "guide_shift_max": float(np.abs(shift).max()),
        "guide_sd_ratio_mean": float(ratio.mean()),
        "guide_sd_ratio_min": float(ratio.min()),
        "guide_sd_ratio_max": float(ratio.max()),
    }


def sentences(agreement: dict[str, Any]) -> list[str]:
    """What the check says, in words."""
    a = agreement
    return [
        f"Guide against HMC: its means are off by {a['guide_shift_rms']:.2f} posterior standard deviations (root mean "
        f"square, at most {a['guide_shift_max']:.2f}), its standard deviations are {a['guide_sd_ratio_mean']:.2f} of "
        f"HMC's on average ({a['guide_sd_ratio_min']:.2f} to {a['guide_sd_ratio_max']:.2f}).",
        f"MALA against HMC, two samplers with one target: means differ by {a['mala_mean_z_rms']:.2f} Monte Carlo "
        f"standard errors (root mean square; 1 is expected), at most {a['mala_mean_z_max']:.2f} in {a['comparisons']} "
        f"comparisons; standard deviations by at most {a['mala_sd_z_max']:.2f}.",
    ]


def _print(out: Any, methods: list[dict[str, Any]], table: list[dict[str, Any]], agreement: dict[str, Any]) -> None:
    from pyro_dgm.ops.tables import plus_minus, text_table

    def optional(value: Any, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    cells = [
        [
            NAMES[m["method"]], f"{m['chains']} x {m['draws']}", f"{m['rhat_max']:.3f}", f"{m['ess_bulk_min']:.0f}",
            f"{m['ess_tail_min']:.0f}", optional(m["divergences"], "d"), optional(m["acceptance_rate"], ".2f"),
            f"{m['seconds']:.1f}", f"{m['ess_per_second']:.0f}",
        ]
        for m in methods
    ]  # fmt: skip
    columns = ["method", "draws", "R-hat\nmax", "ESS bulk\nmin", "ESS tail\nmin", "diverg.", "accept.", "s", "ESS/s"]
    out.print(text_table("Posterior draws of held-out digits", columns, cells))
    cells = [
        [
            f"{t['digit']}", f"z[{t['latent']}]",
            *(plus_minus(t[m][key], t[m][f"{key}_error"]) for key in ("mean", "sd") for m in ("guide", "hmc")),
            f"{t['hmc']['rhat']:.3f}", f"{t['hmc']['ess_bulk']:.0f}",
        ]
        for t in table
    ]  # fmt: skip
    columns = ["digit", "", "mean\nguide", "mean\nHMC", "sd\nguide", "sd\nHMC", "R-hat\nHMC", "ESS\nHMC"]
    out.print(text_table("Guide against HMC, ± Monte Carlo error", columns, cells, left=2))
    for sentence in sentences(agreement):
        out.print(sentence)
