"""Which latent dimensions a guide uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.analysis.prepared import Prepared
from pyro_dgm.infer.objectives.score_function.baselines import per_datum
from pyro_dgm.ops.arguments import check_count, check_number
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.structure import sample_sites

__all__ = ["ActiveUnits", "active_units"]


@dataclass(frozen=True)
class ActiveUnits:
    """Activity of each latent dimension.

    :ivar variances: for each latent site, the variance over data of its posterior means, one number a dimension.
    :ivar threshold: above which a dimension counts as active.
    """

    variances: dict[str, Tensor]
    threshold: float

    @property
    def active(self) -> dict[str, Tensor]:
        """Whether each dimension is active."""
        return {name: value > self.threshold for name, value in self.variances.items()}

    @property
    def count(self) -> int:
        """Active dimensions of all sites."""
        return int(sum(value.sum() for value in self.active.values()))

    @property
    def total(self) -> int:
        """Dimensions of all sites."""
        return sum(value.numel() for value in self.variances.values())

    def __repr__(self) -> str:
        sites = ", ".join(f"{n}: {int(v.sum())} of {v.numel()}" for n, v in self.active.items())
        return f"ActiveUnits({self.count} of {self.total} with variance above {self.threshold:g}; {sites})"


@one_at_a_time
def active_units(
    program: Any, x: Any, threshold: float = 0.01, num_samples: int = 10, seed: int | None = None
) -> ActiveUnits:
    r"""Count the latent dimensions whose posterior mean changes from datum to datum.

    .. math:: A_u = \mathrm{Var}_{x}\left(E_{q(z|x)}[z_u]\right) > 0.01

    A dimension below the threshold has posterior means that do not depend on the data: the model ignores it.  Posterior
    means are the distributions' own where they know them; where a site depends on others of the guide they are
    averaged over draws, and the variance that the draws add is taken off, so that an estimate may be a little below 0.

    :param program: a family, ``pyro_dgm.program(model, guide)`` or a ``(model, guide)`` pair, with a plate over data.
        Modules are put in ``eval()`` mode meanwhile.
    :param x: the data, at least 2, as the program takes them.
    :param threshold: in squared units of the latent; 0.01 is the source's, for latents of prior variance 1.
    :param num_samples: draws of the guide, at least 2.
    :param seed: seed of the draws; without it they take (and advance) the global generators.
    :returns: :class:`ActiveUnits`.
    :raises ValueError: for a program without one plate over data, fewer than 2 data, or arguments out of range.

    Source: Y. Burda, R. Grosse and R. Salakhutdinov (2016), arXiv:1509.00519, section 5.2.

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=2)
        >>> pyro_dgm.analysis.active_units(m, torch.randn(50, 3), seed=0).total
        2
    """
    check_count("num_samples", num_samples, 2)
    check_number("threshold", threshold)
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold!r}")
    draws: dict[str, list[Tensor]] = {}
    with Prepared.of(program, x, seed).evaluating() as prepared:
        for _ in range(num_samples):
            particles = prepared.particles()
            if len(particles.shape) != 1 or particles.shape[0] < 2:
                raise ValueError(
                    "active_units compares data, so the program must have one plate that holds at least 2 data, but "
                    f"the plates that hold every site have sizes {tuple(particles.shape)}"
                )
            for name, site in sample_sites(particles.pairs[0][1]).items():
                value = _mean(site).to(particles.log_q.dtype).double()
                draws.setdefault(name, []).append(
                    per_datum(particles, value, site["fn"].event_dim, particle=False, pool=False)
                )
    found = {}
    for name, values in draws.items():
        means = torch.stack(values)  # (draws, data, dimensions)
        found[name] = means.mean(0).var(0) - means.var(0).mean(0) / num_samples
    return ActiveUnits(found, float(threshold))


def _mean(site: Any) -> Tensor:
    """Mean of a site's distribution given what was drawn before it, or the draw where it has none."""
    try:
        mean = site["fn"].mean
    except (AttributeError, NotImplementedError):  # a distribution without one: draws are averaged
        return site["value"]
    return mean if mean.shape == site["value"].shape and bool(torch.isfinite(mean).all()) else site["value"]
