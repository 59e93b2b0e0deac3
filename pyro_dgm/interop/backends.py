"""Torch's and NumPyro's view of one model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc import HMC
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.infer.sample import sample_posterior
from pyro_dgm.interop.jax_check import differences
from pyro_dgm.interop.jax_density import to_jax
from pyro_dgm.interop.numpyro_nuts import run_nuts
from pyro_dgm.ops.arguments import check_choice, check_count
from pyro_dgm.ops.tables import ResultTable, text_table
from pyro_dgm.programs.batch import model_and_guide
from pyro_dgm.programs.parameters import evaluation_mode

__all__ = ["BackendComparison", "compare_backends"]


class BackendComparison(ResultTable):
    """A row for each position, and for each latent's element; :func:`compare_backends` says what the columns mean.

    :ivar densities: mappings from column to value, a position each.
    :ivar posteriors: mappings from column to value, a latent's element each; empty unless posteriors were asked for.
    :ivar runs: the draws, by backend (``"torch"``, ``"numpyro"``), where asked for.
    """

    index = "point"

    def __init__(
        self, densities: Sequence[dict[str, Any]], posteriors: Sequence[dict[str, Any]], runs: dict[str, Posterior]
    ) -> None:
        super().__init__(densities)
        self.densities, self.posteriors, self.runs = self.rows, list(posteriors), dict(runs)

    def to_frame(self, what: str = "densities") -> Any:
        """``"densities"`` or ``"posteriors"`` as a :class:`pandas.DataFrame`."""
        import pandas

        check_choice("what", what, "densities", "posteriors")
        frame = pandas.DataFrame(getattr(self, what))
        return frame.set_index("point" if what == "densities" else "element") if len(frame) else frame

    def __rich__(self) -> Any:
        from rich.console import Group

        forms = {"torch": ".6f", "numpyro": ".6f", "difference": ".1e", "gradient": ".1e"}
        tables = [
            text_table(
                "Log-densities in unconstrained space (nats), and their gradients",
                ["point", "torch", "numpyro", "difference", "gradient:\nrelative"],
                [[str(r["point"]), *(f"{r[key]:{form}}" for key, form in forms.items())] for r in self.densities],
                "Differences are relative to torch's value, and to the norm of its gradient.",
            )
        ]
        if self.posteriors:
            keys = ("mean_torch", "mean_numpyro", "sd_torch", "sd_numpyro")
            tables.append(
                text_table(
                    f"Posteriors: {self.runs['torch'].method} on torch, NUTS on NumPyro",
                    ["element", "mean\ntorch", "mean\nnumpyro", "sd\ntorch", "sd\nnumpyro", "mean:\nerrors apart"],
                    [[r["element"], *(f"{r[k]:.4g}" for k in keys), f"{r['z']:+.2f}"] for r in self.posteriors],
                    "Errors apart: the difference of the means in its own Monte Carlo standard error.",
                )
            )
        return Group(*tables)

    def __repr__(self) -> str:
        return f"BackendComparison({len(self.densities)} points, {len(self.posteriors)} elements)"


def compare_backends(
    program_or_model: Any,
    *args: Any,
    num_points: int = 5,
    posterior: bool = False,
    num_samples: int = 1000,
    num_chains: int = 4,
    warmup_steps: int | None = None,
    seed: int = 0,
    on_missing: str = "error",
    **kwargs: Any,
) -> BackendComparison:
    r"""Hold a model's log-density on torch against the one on JAX, and optionally HMC against NumPyro's NUTS.

    Densities and gradients are compared at positions uniform on (-2, 2) in unconstrained space: ``difference`` is
    relative to the value, ``gradient`` the largest over latents of the distance relative to the gradient's norm.
    With ``posterior=True`` both samplers run, and each element of each latent has a row: means and standard deviations,
    and ``z``, the difference of the means over its Monte Carlo standard error (ArviZ's ``mcse_mean`` of both); about 1
    in 16 000 is beyond 4 where both chains have converged.

    :param program_or_model: a program, or a bare Pyro model.
    :param args: the model's positional arguments (data), and ``kwargs`` the others.
    :param num_points: positions to compare at.
    :param posterior: whether to sample.
    :param num_samples: draws a chain, ``num_chains`` and ``warmup_steps`` as in :func:`pyro_dgm.sample_posterior`.
    :param seed: seed of positions and samplers.
    :param on_missing: as in :func:`~pyro_dgm.interop.numpyro.to_jax`.
    :returns: a table; ``print`` it, or take ``to_frame()``.
    :raises CannotConvert: as :func:`~pyro_dgm.interop.numpyro.to_jax`.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.interop.numpyro import compare_backends
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=5, latent_dim=2)
        >>> compare_backends(m, torch.randn(3, 5))
        BackendComparison(5 points, 0 elements)
    """
    check_count("num_points", num_points)
    density = to_jax(program_or_model, *args, on_missing=on_missing, **kwargs)
    model, _ = model_and_guide(program_or_model)
    densities = []
    with evaluation_mode(program_or_model, model):
        for i, point in enumerate(density.points(num_points, seed)):
            expected, found = density.torch_value_and_grad(point), density.value_and_grad(point)
            sizes = differences(expected, found)
            densities.append(
                {
                    "point": i,
                    "torch": float(expected[0]),
                    "numpyro": float(found[0]),
                    "difference": sizes.pop("the log-density"),
                    "gradient": max(sizes.values()),
                }
            )
    if not posterior:
        return BackendComparison(densities, [], {})
    options: dict[str, Any] = {"num_samples": num_samples, "num_chains": num_chains, "warmup_steps": warmup_steps}
    data = (kwargs,) if kwargs and not args else args
    runs = {
        "torch": sample_posterior(model, *data, method=HMC(), seed=seed, progress=False, **options),
        "numpyro": run_nuts(density, seed=seed, progress=False, **options),
    }
    return BackendComparison(densities, _side_by_side(runs), runs)


def _side_by_side(runs: dict[str, Posterior]) -> list[dict[str, Any]]:
    rows = []
    for site in runs["torch"].samples:
        moments = {k: _moments(run[site]) for k, run in runs.items()}
        shape = runs["torch"][site].shape[2:]
        for i in range(shape.numel()):
            index = [int(j) for j in torch.unravel_index(torch.tensor(i), shape)] if shape else []
            row: dict[str, Any] = {"element": site + (f"{index}" if index else "")}
            for k, (mean, sd, _) in moments.items():
                row |= {f"mean_{k}": float(mean[i]), f"sd_{k}": float(sd[i])}
            error = sum(float(m[2][i]) ** 2 for m in moments.values()) ** 0.5
            row["z"] = (row["mean_numpyro"] - row["mean_torch"]) / max(error, 1e-300)
            rows.append(row)
    return rows


def _moments(draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and Monte Carlo error of the mean of each element."""
    import arviz

    flat = draws.flatten(2).cpu().double() if draws.dim() > 2 else draws[..., None].cpu().double()
    errors = [float(arviz.mcse(flat[..., i].numpy(), method="mean")) for i in range(flat.shape[-1])]
    return flat.mean((0, 1)), flat.std((0, 1)), torch.tensor(errors, dtype=torch.float64)
