"""Convergence of chains, by ArviZ."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pyro_dgm.infer.posterior import Posterior

__all__ = ["Summary", "convergence", "summarize"]


def _over_elements(draws: np.ndarray, fn: Callable[[np.ndarray], Any]) -> np.ndarray:
    # ArviZ 0.23 and 1.x both take one (chains, draws) array; their other inputs differ.
    flat = draws.reshape(*draws.shape[:2], -1)
    out = np.array([float(np.asarray(fn(flat[..., j]))) for j in range(flat.shape[-1])])
    return out.reshape(draws.shape[2:])


def _measures(draws: torch.Tensor) -> dict[str, np.ndarray]:
    import arviz

    array = np.ascontiguousarray(draws.detach().to("cpu", torch.float64).numpy())
    return {
        "r_hat": _over_elements(array, lambda a: arviz.rhat(a)),
        "ess_bulk": _over_elements(array, lambda a: arviz.ess(a, method="bulk")),
        "ess_tail": _over_elements(array, lambda a: arviz.ess(a, method="tail")),
    }


def convergence(posterior: Posterior) -> dict[str, Any]:
    """Split R-hat, bulk and tail ESS by latent; divergent draws and mean acceptance by chain.

    :returns: ``{site: {"r_hat", "ess_bulk", "ess_tail"}}``, arrays of the site's shape, and under ``"divergences"`` and
        ``"acceptance rate"`` one entry a chain, laid out as Pyro's ``MCMC.diagnostics``.

    Source: A. Vehtari et al. (2021), "Rank-normalization, folding, and localization: an improved R-hat",
    arXiv:1903.08008.
    """
    out: dict[str, Any] = {name: _measures(draws) for name, draws in posterior.samples.items()}
    if "diverging" in posterior.sample_stats:
        diverging = posterior.sample_stats["diverging"].cpu()
        out["divergences"] = {f"chain {c}": row.nonzero().flatten().tolist() for c, row in enumerate(diverging)}
    if "acceptance_rate" in posterior.sample_stats:
        means = posterior.sample_stats["acceptance_rate"].mean(1).tolist()
        out["acceptance rate"] = {f"chain {c}": mean for c, mean in enumerate(means)}
    return out


class Summary(dict[str, dict[str, float]]):
    """A row of numbers for each element of each latent; prints as a table."""

    def __repr__(self) -> str:
        if not self:
            return "Summary({})"
        columns = list(next(iter(self.values())))
        width = max(len(name) for name in self)
        lines = [" " * width + "".join(f"{c:>11}" for c in columns)]
        for name, row in self.items():
            lines.append(
                name.rjust(width)
                + "".join(f"{row[c]:>11.1f}" if c.startswith("ess") else f"{row[c]:>11.4g}" for c in columns)
            )
        return "\n".join(lines)


def summarize(posterior: Posterior) -> Summary:
    """Mean, standard deviation, quantiles, ESS and split R-hat of every element of every latent."""
    table = Summary()
    for name, draws in posterior.samples.items():
        measures = _measures(draws)
        flat = draws.detach().to("cpu", torch.float64).flatten(0, 1)
        low, high = np.quantile(flat.numpy(), [0.05, 0.95], axis=0)
        mean, sd = flat.mean(0).numpy(), flat.std(0).numpy()
        for index in itertools.product(*(range(n) for n in draws.shape[2:])):
            label = name + (f"[{', '.join(map(str, index))}]" if index else "")
            row = {"mean": mean[index], "sd": sd[index], "5%": low[index], "95%": high[index]}
            row.update({k: v[index] for k, v in measures.items()})
            table[label] = {k: float(v) for k, v in row.items()}
    return table
