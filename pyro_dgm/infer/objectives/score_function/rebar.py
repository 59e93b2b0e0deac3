"""REBAR: the relaxed program as control variate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dgm.infer.objectives.bounds.pathwise import with_values
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.score_function.control_variate import ControlVariate, parameter
from pyro_dgm.infer.objectives.score_function.logits import Hidden, relaxed_log_prob
from pyro_dgm.ops.arguments import check_number, check_positive
from pyro_dgm.programs.structure import sample_sites

__all__ = ["REBAR"]


@dataclass(eq=False, repr=False)
class REBAR(ControlVariate):
    r"""The ELBO with the relaxed program as control variate, for Bernoulli and one-hot categorical guide sites.

    .. math:: \nabla_t L = E\left[(\log w(b) - c(\tilde z)) \nabla_t \log q(b) + \nabla_t c(z)
              - \nabla_t c(\tilde z)\right], \qquad c(z) = \eta \log w(\sigma_\lambda(z))

    by the logits :math:`t`, with :math:`z` the logistic (Gumbel) variable of which :math:`b` is the discrete part and
    :math:`\tilde z` another draw of it given :math:`b`.  Unbiased for any temperature :math:`\lambda` and scale
    :math:`\eta`; both are trained by the program's optimiser on the gradient's variance.  For models that can be
    evaluated, differentiably, at values between 0 and 1: one that rounds or compares its discrete latents must be
    given to :class:`~pyro_dgm.infer.RELAX`, which evaluates the model at discrete values only.

    :param num_particles: number of particles averaged over.
    :param temperature: where :math:`\lambda` starts.
    :param control_scale: where :math:`\eta` starts.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for a temperature that is not positive; when used: for integer-valued or other discrete guide
        sites, for sites that depend on each other, for a mixed guide, or if the model cannot take relaxed values.

    Source: G. Tucker, A. Mnih, C. J. Maddison, D. Lawson and J. Sohl-Dickstein (2017), arXiv:1703.07370.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.REBAR().bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    needs_replay = True

    temperature: float = 0.5
    control_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("temperature", self.temperature)
        check_number("control_scale", self.control_scale, finite=True)

    def build_learned(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> nn.Module | None:
        names = self.look_at_sites(model, guide, args, kwargs)
        if not names:
            return None
        particles = self.dry_run(model, guide, args, kwargs)
        sites = sample_sites(particles.pairs[0][1])
        others = sorted(set(sites) - set(names))
        if others:
            raise ValueError(f"REBAR needs every guide site discrete, but {others} are not: use RELAX")
        for name in names:
            if Hidden(self, sites[name]).kind == "categorical":
                raise ValueError(
                    f"REBAR evaluates the model at relaxed values, which the integers of {name!r} (Categorical) have "
                    "not: use OneHotCategorical, or RELAX"
                )
        return _Scales(particles.log_weights, self.temperature, self.control_scale)

    def control(self, particles: Particles, pair: int, hidden: list[Hidden], values: list[Tensor]) -> Tensor:
        assert isinstance(self.learned, _Scales)
        temperature = self.learned.log_temperature.exp()
        soft = {h.name: h.soft(z, temperature) for h, z in zip(hidden, values, strict=True)}
        model, args, kwargs = particles._cache["program"]
        relaxed = with_values(particles.guides[pair], lambda name, site: soft.get(name, site["value"]))
        try:
            trace = particles.runner.run(model, args, kwargs, relaxed)
            for name, value in soft.items():
                trace.nodes[name]["unscaled_log_prob"] = relaxed_log_prob(trace.nodes[name]["fn"], value)
            guide = relaxed.copy()
            for h in hidden:
                # With the logits that the estimator differentiates by, not the guide's own.
                log_q = h.value.new_zeros(()) + _log_q(h, soft[h.name])
                guide.nodes[h.name]["unscaled_log_prob"] = log_q
            inner = Particles([(trace, guide)], particles.num_particles, particles.nesting, particles.vectorized)
            return self.learned.scale * inner.log_weights
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"REBAR evaluates the model at values of {sorted(soft)} between 0 and 1, which it cannot take "
                f"({error}): use RELAX"
            ) from error


class _Scales(nn.Module):
    def __init__(self, like: Tensor, temperature: float, control_scale: float) -> None:
        super().__init__()
        self.log_temperature = parameter(0.0, like)
        self.scale = parameter(control_scale, like)
        with torch.no_grad():
            self.log_temperature.fill_(temperature).log_()


def _log_q(hidden: Hidden, value: Tensor) -> Tensor:
    if hidden.kind == "bernoulli":
        terms = value * hidden.logits - torch.nn.functional.softplus(hidden.logits)
        extra = hidden.event_dim
    else:
        terms, extra = (value * hidden.location).sum(-1), hidden.event_dim - 1
    return terms.sum(tuple(range(-extra, 0))) if extra else terms
