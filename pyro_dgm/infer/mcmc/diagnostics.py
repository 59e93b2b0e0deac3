"""Convergence of chains, by ArviZ."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pyro_dgm.infer.mcmc.moments import Moments
from pyro_dgm.infer.posterior import Posterior

__all__ = [
    "Summary",
    "convergence",
    "convergence_of",
    "nested_r_hat",
    "summarize",
    "summarize_moments",
    "warn_of_trouble",
]


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
    columns: dict[str, dict[str, Any]] = {}
    for name, draws in posterior.samples.items():
        flat = draws.detach().to("cpu", torch.float64).flatten(0, 1)
        low, high = np.quantile(flat.numpy(), [0.05, 0.95], axis=0)
        columns[name] = {"mean": flat.mean(0), "sd": flat.std(0), "5%": low, "95%": high, **_measures(draws)}
    return _table(columns)


def summarize_moments(moments: Moments) -> Summary:
    """Mean, standard deviation, ESS and split R-hat of every element, of a run without draws."""
    found = {"mean": moments.mean, "sd": moments.sd, "ess_mean": moments.ess, "r_hat": moments.r_hat}
    return _table({name: {column: v[name] for column, v in found.items()} for name in moments.mean})


def _table(columns: dict[str, dict[str, Any]]) -> Summary:
    """A row for each element, from arrays by latent and column."""
    table = Summary()
    for name, values in columns.items():
        for index in itertools.product(*(range(n) for n in values["mean"].shape)):
            label = name + (f"[{', '.join(map(str, index))}]" if index else "")
            table[label] = {column: float(v[index]) for column, v in values.items()}
    return table


def convergence_of(moments: Moments, totals: dict[str, torch.Tensor]) -> dict[str, Any]:
    """As :func:`convergence`, of a run without draws: ``"divergences"`` are numbers of draws, not which."""
    r_hat, ess = moments.r_hat, moments.ess
    out: dict[str, Any] = {
        name: {"r_hat": r_hat[name].double().cpu().numpy(), "ess_mean": ess[name].double().cpu().numpy()}
        for name in r_hat
    }
    for label, key in (("divergences", "diverging"), ("acceptance rate", "acceptance_rate")):
        out[label] = {f"chain {c}": value for c, value in enumerate(totals[key].tolist())}
    return out


def nested_r_hat(draws: torch.Tensor, num_superchains: int) -> torch.Tensor:
    r"""R-hat for many short chains, by groups of chains that began at one point.

    A chain of few draws has a mean too noisy for R-hat, which compares chains.  The mean of a *superchain*, the chains
    that began at one point, has not:

    .. math:: n\hat R = \sqrt{1 + \frac{\hat B}{\hat W}}, \qquad
              \hat B = \operatorname{var}_k \bar x_{k}, \qquad
              \hat W = \frac1K \sum_k \bigl(\operatorname{var}_m \bar x_{km}
                       + \frac1M \sum_m \operatorname{var}_n x_{kmn}\bigr)

    with superchain ``k``, chain ``m`` and draw ``n``; a variance over one element is 0.  Near
    :math:`\sqrt{1 + 1/M}` for ``M`` chains that have converged, of one draw each.

    :param draws: ``(chains, draws, ...)``, the chains of a superchain one after another.
    :param num_superchains: ``K``, at least 2; it must divide the number of chains.
    :returns: of the shape of one draw.
    :raises ValueError: if it does not.

    Source: C. C. Margossian et al. (2024), "Nested R-hat: assessing the convergence of Markov chain Monte Carlo when
    running many short chains", arXiv:2110.13017.

    Example::

        >>> draws = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
        >>> bool(nested_r_hat(draws, num_superchains=8) < 1.1)
        True
    """
    chains = draws.shape[0]
    if num_superchains < 2 or chains % num_superchains:
        raise ValueError(f"num_superchains must be at least 2 and divide the {chains} chains, got {num_superchains}")
    grouped = draws.to(torch.float64).reshape(num_superchains, chains // num_superchains, *draws.shape[1:])
    means = grouped.mean(2)
    between = means.mean(1).var(0)
    over_chains = means.var(1) if means.shape[1] > 1 else torch.zeros_like(means[:, 0])
    over_draws = grouped.var(2).mean(1) if grouped.shape[2] > 1 else torch.zeros_like(means[:, 0])
    return (1.0 + between / (over_chains + over_draws).mean(0)).sqrt()


def warn_of_trouble(totals: dict[str, torch.Tensor]) -> None:
    """Say which chains diverged or stood still: their draws are kept, and would pass unnoticed.

    :param totals: of each chain, as :func:`pyro_dgm.infer.mcmc.keeping.totals_of` gives them.
    """
    diverging = totals["diverging"]
    stuck = (totals["acceptance_rate"] < 0.01).nonzero().flatten().tolist()
    if stuck:
        warnings.warn(
            f"chains {stuck} hardly moved (mean acceptance below 1 %): warm up longer, begin elsewhere "
            "(init_strategy='prior' or a function of Pyro's), or leave them out",
            RuntimeWarning,
            stacklevel=3,
        )
    chains = int((diverging > 0).sum())
    if chains:
        warnings.warn(
            f"{int(diverging.sum())} of {int(totals['draws'].sum())} draws diverged, on {chains} of "
            f"{len(diverging)} chains: raise target_accept_prob, or reparameterise the model",
            RuntimeWarning,
            stacklevel=3,
        )
