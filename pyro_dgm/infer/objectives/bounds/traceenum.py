"""Pyro's enumerating ELBO, made to fit the contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_dgm.infer.objectives.bounds.elbo import ELBO
from pyro_dgm.infer.objectives.evaluation.enumeration import enumerated_bound
from pyro_dgm.programs.parameters import leaves_the_store
from pyro_dgm.programs.structure import Structure, guide_messenger

__all__ = ["TraceEnumELBO"]


@dataclass(eq=False, repr=False)
class TraceEnumELBO(ELBO):
    r"""Pyro's ``TraceEnum_ELBO``: the ELBO with every site that is marked for enumeration summed exactly.

    .. math:: L = \sum_{y} q(y|x)\, E_{q(z|y,x)}\left[\log \sum_{c} p(x, y, z, c) - \log q(y, z|x)\right]
              \le \log p(x)

    with :math:`y` the marked sites of the guide, :math:`c` those of the model alone (mark a site with
    ``infer={"enumerate": "parallel"}``, or the whole callable with ``pyro.infer.config_enumerate``) and :math:`z` the
    rest, which are sampled: pathwise gradients where they are reparameterised, DiCE score-function terms where not.

    It gives Pyro's loss and gradient draw for draw, and beside them the bound of each datum, which Pyro's lacks.
    :class:`~pyro_dgm.infer.ELBO` does the same sums by itself when it meets a mark; without one it uses closed-form
    divergences instead of DiCE.  Take this class to reproduce a result of Pyro's, or to be sure that no divergence is
    replaced.

    :param num_particles: number of particles averaged over.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises TypeError: when used with a ``GuideMessenger`` guide, which Pyro cannot enumerate.

    Source: F. Obermeyer et al. (2019), arXiv:1902.03210, for the sums; J. Foerster et al. (2018), arXiv:1802.05098,
    for DiCE.

    Example::

        >>> import torch, pyro, pyro_dgm
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        ...         pyro.sample("x", dist.Normal(2 * c - 1, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("c", dist.Bernoulli(logits=2 * x), infer={"enumerate": "parallel"})
        >>> x = torch.tensor([0.3, -1.0])
        >>> bound = pyro_dgm.infer.TraceEnumELBO().bound(model, guide, x)  # the guide is the posterior: log p(x)
        >>> [round(v, 4) for v in bound.tolist()]
        [-1.4196, -1.4852]
    """

    analytic_kl: bool = field(default=False, init=False)

    def structure(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Structure:
        if guide_messenger(guide) is not None:
            raise TypeError("TraceEnumELBO cannot enumerate a GuideMessenger guide: use an ordinary guide, or ELBO")
        return super().structure(model, guide, args, kwargs)

    # What ELBO does when it meets a mark, done always

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        return self.estimate_sum(self.pair(model, guide, args, kwargs), grad)

    @leaves_the_store
    def bound(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return enumerated_bound(self, self.pair(model, guide, args, kwargs))

    # The posterior of what is summed out, by Pyro

    @leaves_the_store
    def compute_marginals(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        r"""The posterior of each site that the model sums out, :math:`p(c_i | x, z)`, at one draw of the guide.

        :returns: by site, a distribution with the site's batch shape.
        :raises NotImplementedError: as Pyro's, with several particles, or where the guide has marked sites.
        :raises ValueError: where a marked site has subsampled or sequential plates that keep it from having a marginal.

        Example::

            >>> import torch, pyro, pyro_dgm
            >>> import pyro.distributions as dist
            >>> def model(x):
            ...     with pyro.plate("data", len(x)):
            ...         c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            ...         pyro.sample("x", dist.Normal(2 * c - 1, 1.0), obs=x)
            >>> elbo = pyro_dgm.infer.TraceEnumELBO()
            >>> marginals = elbo.compute_marginals(model, lambda x: None, torch.tensor([0.3, -1.0]))
            >>> [round(p, 4) for p in marginals["c"].probs.tolist()]  # 1 / (1 + exp(-2 x))
            [0.6457, 0.1192]
        """
        return self._of_pyro(model, guide, args, kwargs).compute_marginals(model, guide, *args, **kwargs)

    @leaves_the_store
    def sample_posterior(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the sites that it sums out drawn from their joint posterior, at one draw of the guide.

        :returns: what the model returns.
        :raises NotImplementedError: as Pyro's, with several particles, or where the guide has marked sites.

        Example::

            >>> import torch, pyro, pyro_dgm
            >>> import pyro.distributions as dist
            >>> def model(x):
            ...     with pyro.plate("data", len(x)):
            ...         c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            ...         pyro.sample("x", dist.Normal(20 * c - 10, 1.0), obs=x)
            ...     return c
            >>> elbo = pyro_dgm.infer.TraceEnumELBO()
            >>> elbo.sample_posterior(model, lambda x: None, torch.tensor([9.0, -11.0]))
            tensor([1., 0.])
        """
        return self._of_pyro(model, guide, args, kwargs).sample_posterior(model, guide, *args, **kwargs)

    def _of_pyro(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> TraceEnum_ELBO:
        return TraceEnum_ELBO(
            num_particles=self.num_particles,
            max_plate_nesting=self.structure(model, guide, args, kwargs).nesting,
            strict_enumeration_warning=self.strict_enumeration_warning,
        )
