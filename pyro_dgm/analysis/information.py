"""How much a code says about the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_dgm.analysis.aggregate import aggregate_terms
from pyro_dgm.programs.one_at_a_time import one_at_a_time

__all__ = ["MutualInformation", "mutual_information"]


@dataclass(frozen=True)
class MutualInformation:
    """Bounds on the mutual information of data and latents, nats.

    :ivar lower: lower bound in expectation, at most ``limit``.
    :ivar lower_se: its standard error, over data and draws.
    :ivar upper: upper bound in expectation.
    :ivar upper_se: its standard error, over data and draws.
    :ivar num_data: N.
    """

    lower: float
    lower_se: float
    upper: float
    upper_se: float
    num_data: int

    @property
    def limit(self) -> float:
        """:math:`\\log N`, which no lower bound from N data can exceed."""
        return math.log(self.num_data)

    def __repr__(self) -> str:
        return (
            f"MutualInformation(between {self.lower:.3f} ± {self.lower_se:.2g} and {self.upper:.3f} ± "
            f"{self.upper_se:.2g} nats; N = {self.num_data}, the lower bound is at most {self.limit:.2f})"
        )


@one_at_a_time
def mutual_information(
    program: Any, x: Any, num_samples: int = 10, chunk_size: int = 200_000, seed: int | None = None
) -> MutualInformation:
    r"""Bound the mutual information :math:`I_q(x; z)` of data and latents under the guide, from both sides.

    .. math:: E\left[\log \frac{q(z_n|x_n)}{\frac1N \sum_m q(z_n|x_m)}\right] \le I_q(x; z) \le
              E\left[\log \frac{q(z_n|x_n)}{\frac1{N-1} \sum_{m \ne n} q(z_n|x_m)}\right]

    for :math:`x_1, \ldots, x_N` independent draws from the distribution of the data and :math:`z_n \sim q(z|x_n)`.
    Near zero the latents are not used (posterior collapse).  The bounds meet as N grows; where the information is well
    above :math:`\log N` the lower one stays at :math:`\log N` and the upper one is loose.  The lower bound is also,
    exactly, the information in the code about *which of these N data* it is: the term of
    :func:`~pyro_dgm.analysis.elbo_surgery`.

    :param program: a family, ``pyro_dgm.program(model, guide)`` or a ``(model, guide)`` pair; every latent in one plate
        over data.  Modules are put in ``eval()`` mode meanwhile.
    :param x: the data, at least 2, as the program takes them.
    :param num_samples: draws from the posterior of each datum, at least 2.
    :param chunk_size: most pairs of draws and data that are evaluated at once.
    :param seed: seed of the draws; without it they take (and advance) the global generators.
    :returns: :class:`MutualInformation`, nats.
    :raises ValueError: if a latent is not in one plate over data, for fewer than 2 data, or arguments out of range.
    :raises TypeError: for a ``GuideMessenger`` guide.

    Source: B. Poole, S. Ozair, A. van den Oord, A. A. Alemi and G. Tucker (2019), arXiv:1905.06922.

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> found = pyro_dgm.analysis.mutual_information(m, torch.randn(50, 3), seed=0)
        >>> found.lower < found.upper
        True
    """
    terms = aggregate_terms("mutual_information", program, x, num_samples, chunk_size, seed)
    n = terms.log_prior.shape[1]
    if n < 2:
        raise ValueError(f"x must hold at least 2 data, got {n}: one datum has nothing to be told from")
    lower = (terms.log_posterior - terms.log_aggregate).mean(0)  # of each datum
    upper = (terms.log_posterior - terms.log_others).mean(0)
    root = math.sqrt(n)
    return MutualInformation(
        float(lower.mean()), float(lower.std()) / root, float(upper.mean()), float(upper.std()) / root, n
    )
