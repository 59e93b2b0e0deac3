"""Maximum likelihood for a program whose prior is an energy, by short chains for prior and posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dgm.distributions.chains import check_kernel, run_chains
from pyro_dgm.infer.objectives.energies.base import EnergyObjective, EnergySite
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.ops.arguments import check_count, check_positive
from pyro_dgm.programs import param_messages
from pyro_dgm.programs.structure import sample_sites

__all__ = ["ShortRunML"]


@dataclass(eq=False, repr=False)
class ShortRunML(EnergyObjective):
    r"""Maximum likelihood by short-run MCMC, for a latent variable model whose prior is an energy that learns.

    .. math:: L(\theta) = -\sum_n \left[ \log p_\beta(x_n \mid z_n^+) + \log \tilde p_\alpha(z_n^+)
              - \log \tilde p_\alpha(z_n^-) \right]

    for chains :math:`z_n^+` towards :math:`p_\theta(z \mid x_n)` and :math:`z_n^-` towards :math:`p_\alpha(z)`, where
    :math:`\tilde p_\alpha` is the prior without its :math:`Z`, and no gradient goes through the chains.  Were they to
    reach their laws, the gradient would be that of :math:`-\sum_n \log p_\theta(x_n)`: the decoder's at draws of the
    posterior, the prior energy's between posterior and prior draws.  Short chains from the prior's own starts do not,
    quite; what they give is what is learnt, and what to sample by afterwards too.

    For programs with one latent site, of an unnormalised density
    (:class:`~pyro_dgm.distributions.EnergyDistribution`) and inside the plate of the data, and observed sites of any
    density there: :class:`~pyro_dgm.models.LatentEBM`, or your own.  The guide is empty.  Put a decoder with
    batch normalisation in evaluation mode, for a datum's chain must not depend on the other data.

    ``run.history["train"]`` holds :math:`-L` per datum, no likelihood: the decoder's log-likelihood at draws of
    the posterior, plus how much higher the prior's log-density is there than at draws of its own.

    :param num_steps: transitions for the posterior.
    :param num_prior_steps: for the prior; the distribution's ``num_steps`` if not given, with its own step size.
    :param step_size: :math:`\epsilon` of the posterior's Langevin steps, at temperature 1 of the joint density.
    :param kernel: of :mod:`pyro_dgm.infer.mcmc`, for the posterior instead of Langevin steps.
    :raises ValueError: for a number out of range; in training, for a program of another kind, or densities that are not
        finite at the end of a chain.

    Source: B. Pang, T. Han, E. Nijkamp, S.-C. Zhu and Y. N. Wu (2020), "Learning latent space energy-based prior
    model", arXiv:2006.08205; short runs: E. Nijkamp, M. Hill, S.-C. Zhu and Y. N. Wu (2019), "Learning non-convergent
    non-persistent short-run MCMC toward energy-based model", arXiv:1904.09770.

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> program = pyro_dgm.models.LatentEBM(event_shape=(5,), latent_dim=2, hidden=(16,), prior_hidden=(16,))
        >>> objective = pyro_dgm.infer.ShortRunML(num_steps=5, num_prior_steps=5)
        >>> run = pyro_dgm.fit(program, torch.randn(20, 5), objective=objective, epochs=2, progress=False)
    """

    metric = Metric("log-likelihood at posterior draws, plus the prior's gap", better=None)

    num_steps: int = 20
    num_prior_steps: int | None = None
    step_size: float = 0.1
    kernel: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_steps", self.num_steps)
        check_count("num_prior_steps", self.num_prior_steps, optional=True)
        check_positive("step_size", self.step_size)
        if self.kernel is not None:
            check_kernel(self.kernel)

    def energy_site(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> EnergySite:
        """The prior's site, its value where the posterior's chains begin.

        :raises ValueError: if there is not exactly one latent site, of unnormalised density, in one plate.
        """
        with torch.no_grad(), param_messages(False):
            trace = poutine.trace(_AtLatent(None, model)).get_trace(*args, **kwargs)
        sites = sample_sites(trace)
        latent = {name: site for name, site in sites.items() if not site["is_observed"]}
        if len(latent) != 1 or not hasattr(next(iter(latent.values()))["fn"], "mcmc_step"):
            kinds = {name: type(site["fn"]).__name__ for name, site in latent.items()}
            raise ValueError(
                "ShortRunML needs a model with one latent site, of unnormalised density (EnergyDistribution); this one "
                f"has {kinds or 'none'}"
            )
        ((name, site),) = latent.items()
        plates = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        if len(plates) != 1 or site["mask"] is not None:
            raise ValueError(f"the latent site {name!r} must be in one plate, over the data, and not masked")
        for other in sites.values():
            if plates[0] not in other["cond_indep_stack"]:
                raise ValueError(f"site {other['name']!r} must be in the plate {plates[0].name!r} of the latent site")
            if other is not site and getattr(other["fn"], "normalized", True) is False:
                raise ValueError(f"site {other['name']!r} has a density known up to a constant, beside the prior's")
        return EnergySite(name, site["fn"], site["value"], site["scale"])

    def check_site(self, site: EnergySite) -> None:
        """The latent is none of the data: whatever its chains begin at is in the support."""

    def loss_of(self, site: EnergySite, model: Any, args: tuple, kwargs: dict) -> Tensor:
        fixed = site.distribution.expand(torch.Size())

        def log_joint(z: Tensor) -> Tensor:
            with param_messages(False):
                likelihood = self.log_likelihood(model, site.name, z, args, kwargs)
            return likelihood + fixed.log_prob(z)

        z = run_chains(
            log_joint,
            site.value,
            self.num_steps,
            step_size=self.step_size,
            kernel=self.kernel,
            support=site.distribution.support,
            what=f"chains for the posterior of {site.name!r}",
        )
        likelihood = self.log_likelihood(model, site.name, z, args, kwargs)
        self.check_finite(
            likelihood, lambda bad, count: f"the log-likelihood given {site.name!r} is {bad} at {count} posterior draws"
        )
        prior = self.surrogate(EnergySite(site.name, site.distribution, z, site.scale))
        return prior - likelihood.sum()

    def surrogate(self, site: EnergySite) -> Tensor:
        r"""The prior's part of the loss, :math:`\sum_n \log \tilde p(z_n^-) - \log \tilde p(z_n^+)`."""
        law = site.distribution
        negative = law.mcmc_step(law.initial_state(site.num_data), self.num_prior_steps or law.num_steps)
        up = self.check_energy(law.expand(torch.Size()).log_prob(site.value), site, "posterior draws")
        down = self.check_energy(law.state_log_prob(negative), site, "prior draws")
        return down.sum() - up.sum()

    def log_likelihood(
        self, model: Callable[..., Any], name: str, z: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Log-density of all observed sites given the latent, of each datum, ``(N,)``, without scale."""
        trace = poutine.trace(_AtLatent(z, model)).get_trace(*args, **kwargs)
        (plate,) = (f for f in trace.nodes[name]["cond_indep_stack"] if f.vectorized)
        assert plate.dim is not None
        total = z.new_zeros(len(z))
        for other, site in sample_sites(trace).items():
            if other != name:
                log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
                log_prob = torch.as_tensor(scale_and_mask(log_prob, 1.0, site["mask"]))
                total = total + log_prob.movedim(plate.dim, 0).reshape(len(z), -1).sum(-1)
        return total


class _AtLatent(Messenger):
    """Give the latent site of unnormalised density a value, or its chains' start, instead of running chains for one."""

    def __init__(self, value: Tensor | None, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.value, self.fn = value, fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self:
            return self.fn(*args, **kwargs)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or not hasattr(msg["fn"], "mcmc_step"):
            return
        fn, value = msg["fn"], self.value
        if value is None:
            value = fn.initial_state(fn.batch_shape.numel())
        msg["value"], msg["done"] = value.reshape(fn.batch_shape + fn.event_shape), True
