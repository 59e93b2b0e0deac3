"""Pyro's graph-based ELBO, made to fit the contract."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.infer.tracegraph_elbo import TrackNonReparam, _compute_elbo
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.programs.structure import sample_sites

__all__ = ["TraceGraphELBO"]


class TraceGraphELBO(ParticleObjective):
    r"""The ELBO whose score-function sites are charged only with the costs downstream of them.

    .. math:: \nabla_\phi L = E\Bigl[\nabla_\phi \sum_c c +
              \sum_{i \notin \mathrm{rep}} \nabla_\phi \log q(z_i) \bigl(\sum_{c \succ i} c - b_i\bigr)\Bigr]

    Pyro's ``TraceGraph_ELBO`` (dependence is found by tracking provenance, baselines :math:`b_i` come from
    ``infer={"baseline": {...}}``), with ``differentiable_loss`` and ``bound``, which Pyro's lacks.  For programs with
    several discrete sites; for one such site a plate, :class:`~pyro_dgm.infer.ELBO` does the same for less.

    The option ``use_decaying_avg_baseline`` of a site keeps its average in Pyro's global param store, as in Pyro.

    :param num_particles: number of particles averaged over.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.

    Source: J. Schulman, N. Heess, T. Weber and P. Abbeel (2015), arXiv:1506.05254; A. Mnih and K. Gregor (2014),
    arXiv:1402.0030.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.TraceGraphELBO().bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    averages_weights = False
    under_vmap = False  # a tensor's provenance is not tracked there

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        if self.structure(model, guide, args, kwargs).model_enumerates:
            raise ValueError(
                "TraceGraphELBO does not enumerate, and the guide has no site for what the model marks: use ELBO, or "
                "give the guide one"
            )
        if not grad:
            return self.run(model, guide, args, kwargs)
        with TrackNonReparam(), ValuesRead() as reads, _NoteReads(reads):
            return self.run(model, guide, args, kwargs, before=reads.forget)

    def bound_of(self, particles: Particles) -> Tensor:
        return detach_provenance(particles.log_weights).mean(0)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        total: Any = 0.0
        for model_trace, guide_trace in particles.pairs:
            _charge(model_trace, guide_trace)
            total = total - _compute_elbo(model_trace, guide_trace)[1]
        return torch.as_tensor(total) / self.num_particles


def _charge(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    for trace in (model_trace, guide_trace):
        for site in trace.nodes.values():
            if site["type"] == "sample":
                site.pop("score_parts", None)  # ours are unscaled, Pyro's carry the scale
    model_trace.compute_log_prob()
    guide_trace.compute_score_parts()
    for trace in (model_trace, guide_trace):
        for site in sample_sites(trace).values():
            # What comes after a branch on a sampled value depends on it, though no tensor does.
            for key in ("log_prob", "log_prob_sum"):
                site[key] = track_provenance(site[key], site["infer"].get(_READ, frozenset()))


#: key of the infer dictionary: the sampled values that Python has read before a site
_READ = "_values_read"


class ValuesRead(TorchFunctionMode):
    """Notes the sites whose values Python reads, by ``bool``, ``float``, ``.item()`` and the like.

    :ivar sites: their names, by provenance.
    """

    READERS = {
        getattr(Tensor, name)
        for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "__array__")
    }

    def __init__(self) -> None:
        super().__init__()
        self.sites: frozenset[str] = frozenset()

    def forget(self) -> None:
        """Before another particle, of which nothing has been read."""
        self.sites = frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.READERS:
            self.sites = self.sites | get_provenance(args[0])
        return func(*args, **(kwargs or {}))


class _NoteReads(Messenger):
    """Writes to each sample statement what had been read when it was reached."""

    def __init__(self, reads: ValuesRead) -> None:
        super().__init__()
        self.reads = reads

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.reads.sites:
            msg["infer"] = {**msg["infer"], _READ: self.reads.sites}
