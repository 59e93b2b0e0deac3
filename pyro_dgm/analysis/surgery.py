"""The evidence lower bound in parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_dgm.analysis.aggregate import aggregate_terms
from pyro_dgm.ops.tables import as_text, text_table
from pyro_dgm.programs.one_at_a_time import one_at_a_time

__all__ = ["ELBOSurgery", "elbo_surgery"]


@dataclass(frozen=True)
class ELBOSurgery:
    """The parts of a bound, nats per datum; ``elbo = reconstruction - mutual_information - marginal_kl``.

    :ivar parts: mean of each part, by name.
    :ivar standard_errors: their Monte Carlo standard errors: how much they would change with other draws.
    :ivar num_data: N; the mutual information cannot exceed :math:`\\log N`.
    """

    parts: dict[str, float]
    standard_errors: dict[str, float]
    num_data: int

    def __getattr__(self, name: str) -> float:
        if name in ("parts", "standard_errors"):  # while it is being copied there are none yet
            raise AttributeError(name)
        try:
            return self.parts[name]
        except KeyError:
            raise AttributeError(f"ELBOSurgery has no part {name!r}; there are {', '.join(self.parts)}") from None

    def __rich__(self) -> Any:
        notes = {"mutual_information": f"mutual information (at most {math.log(self.num_data):.2f})"}
        rows = []
        for name, value in self.parts.items():
            label = notes.get(name, name.replace("_", " ").replace("kl", "KL").replace("elbo", "ELBO"))
            rows.append([label, f"{value:.3f}", f"{self.standard_errors[name]:.2g}"])
        title = f"ELBO surgery, nats per datum, {self.num_data} data"
        return text_table(title, ["part", "value", "standard error"], rows)

    def __str__(self) -> str:
        return as_text(self, width=80)


@one_at_a_time
def elbo_surgery(
    program: Any, x: Any, num_samples: int = 10, chunk_size: int = 200_000, seed: int | None = None
) -> ELBOSurgery:
    r"""Take the ELBO of a data set apart: is it the code that carries nothing, or the code that misses the prior?

    .. math:: \frac1N \sum_n L(x_n) = \underbrace{\frac1N \sum_n E_{q(z|x_n)}[\log p(x_n|z)]}_{\text{reconstruction}}
              - \underbrace{I_q(n; z)}_{\text{mutual information}}
              - \underbrace{KL(q(z) \| p(z))}_{\text{marginal KL}}, \qquad q(z) = \frac1N \sum_n q(z|x_n)

    with n the index of a datum, uniform.  The mean KL of the posteriors is the sum of the last two.  A mutual
    information near 0 is posterior collapse; one near its limit :math:`\log N` says that posteriors of different data
    do not overlap and that more data are needed to measure it.  A large marginal KL is a prior that does not fit the
    codes: samples from it look worse than reconstructions, and a richer prior helps.

    All draws are evaluated under all posteriors: N² densities for each of ``num_samples``.

    :param program: a family, ``pyro_dgm.program(model, guide)`` or a ``(model, guide)`` pair; every latent in one plate
        over data.  Modules are put in ``eval()`` mode meanwhile.
    :param x: the data, a batch as the program takes it: the aggregate posterior is that of these data.
    :param num_samples: draws from the posterior of each datum, at least 2.
    :param chunk_size: most pairs of draws and data that are evaluated at once.
    :param seed: seed of the draws; without it they take (and advance) the global generators.
    :returns: :class:`ELBOSurgery`, which prints as a table; its parts are attributes.
    :raises ValueError: if a latent is not in one plate over data, or for arguments out of range.
    :raises TypeError: for a ``GuideMessenger`` guide.

    Source: M. D. Hoffman and M. J. Johnson (2016), "ELBO surgery: yet another way to carve up the variational evidence
    lower bound", NIPS workshop on advances in approximate Bayesian inference.

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> parts = pyro_dgm.analysis.elbo_surgery(m, torch.randn(50, 3), seed=0)
        >>> sorted(parts.parts)
        ['elbo', 'marginal_kl', 'mutual_information', 'reconstruction']
    """
    terms = aggregate_terms("elbo_surgery", program, x, num_samples, chunk_size, seed)
    arrays: dict[str, Tensor] = {
        "elbo": terms.log_likelihood + terms.log_prior - terms.log_posterior,
        "reconstruction": terms.log_likelihood,
        "mutual_information": terms.log_posterior - terms.log_aggregate,
        "marginal_kl": terms.log_aggregate - terms.log_prior,
    }
    means = {name: value.mean(1) for name, value in arrays.items()}  # of each set of draws
    return ELBOSurgery(
        {name: float(value.mean()) for name, value in means.items()},
        {name: float(value.std()) / math.sqrt(num_samples) for name, value in means.items()},
        terms.log_prior.shape[1],
    )
