"""Score matching, with the trace of the Hessian taken exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.energies.base import EnergySite
from pyro_dgm.infer.objectives.energies.score import ScoreObjective, score_and_curvature
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.ops.arguments import check_count

__all__ = ["ScoreMatching"]


@dataclass(eq=False, repr=False)
class ScoreMatching(ScoreObjective):
    r"""Score matching: the gradient of the log-density is fitted, in which :math:`\log Z` has no part.

    .. math:: J(\theta) = \sum_n \tfrac12 \| s_\theta(x_n) \|^2 + \mathrm{tr} \, \nabla_x s_\theta(x_n), \qquad
              s_\theta(x) = \nabla_x \log p_\theta(x)

    which by parts is :math:`\frac12 \sum_n \| s_\theta(x_n) - \nabla \log p(x_n) \|^2` up to a constant, in
    expectation. There are no chains and no noise, and the trace is exact: D products with the Hessian, forward over
    reverse, for D dimensions.  Take it up to some tens of them; :class:`SlicedScoreMatching` beyond.

    The energy must be twice differentiable: a network of ReLUs has no curvature, and its loss here is that of no
    density.  Take SiLU, tanh or softplus.  As every score matching it sees densities from nearby alone, and says little
    of the weights of modes that are far apart.  Data that lie on few values (pixels) have no density whose score could
    be matched: dequantise them, or take :class:`DenoisingScoreMatching`.

    ``run.history["train"]`` holds :math:`J / N`.

    :param chunk_size: dimensions whose second derivatives are taken at once; all of them by default.
    :raises ValueError: for ``chunk_size`` below 1; in training, for a support that is not all reals, or energies or
        derivatives that are not finite.

    Source: A. Hyvärinen (2005), "Estimation of non-normalized statistical models by score matching".

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import ScoreMatching
        >>> _ = torch.manual_seed(0)
        >>> ebm = pyro_dgm.models.EBM(event_shape=(2,), hidden=(16,))
        >>> run = pyro_dgm.fit(ebm, torch.randn(50, 2), objective=ScoreMatching(), epochs=2, progress=False)
    """

    metric = Metric("score matching loss", "per datum", "lower")

    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("chunk_size", self.chunk_size, optional=True)

    def surrogate(self, site: EnergySite) -> Tensor:
        log_prob, x = self.log_prob_of(site), site.value
        size = x[0].numel()
        basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
        trace, found, value = x.new_zeros(len(x)), x, x
        for rows in basis.split(self.chunk_size or size):
            found, curvature, value = score_and_curvature(log_prob, x, rows)
            trace = trace + curvature.sum(0)
        self.check_energy(value, site, "data")
        loss = 0.5 * found.reshape(len(x), -1).square().sum(-1) + trace
        return self.check_score(loss, site, "data").sum()
