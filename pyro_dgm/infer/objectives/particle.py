"""The base of the objectives that are estimated with particles: a bound per datum from the shared evaluation."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.evaluation.enumeration import enumerated_elbo
from pyro_dgm.infer.objectives.evaluation.evaluate import run_pairs
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.metric import BOUND
from pyro_dgm.ops import log_mean_exp
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.programs import emit_param_messages, param_messages
from pyro_dgm.programs.parameters import leaves_the_store
from pyro_dgm.programs.structure import AddedDims, Structure, StructureCache, guide_messenger, looking_at

__all__ = ["ParticleObjective"]


@dataclass(eq=False, repr=False)
class ParticleObjective(Objective):
    """Base of the ELBOs and of everything else that is estimated with particles.

    A subclass is a dataclass, whose fields are its arguments.  It gives :meth:`surrogate_of` and, where the bound is
    neither the ELBO nor that of IWAE, :meth:`bound_of`: functions of the shared evaluation
    (:class:`~pyro_dgm.infer.objectives.evaluation.particles.Particles`).  The loss of a batch is

    .. math:: -s \\sum_d L_d

    with :math:`L_d` the bound of a datum and :math:`s` the scale of subsampled plates and mini-batches, which stays
    outside the logarithm.

    :param num_particles: number K of particles.
    :param max_plate_nesting: deepest nesting of plates; looked up by running the pair once if not given.
    :param vectorize_particles: run all particles at once: in a plate to the left of all others where the program
        broadcasts, else under ``torch.vmap``; a program that takes neither runs them one after another, and a warning
        says why.  The first batch of a pair is compared with runs of single particles.  ``False`` runs them one by one.
    :param strict_enumeration_warning: warn where enumeration marks look misused (Pyro's keyword).
    :param retain_graph: passed to ``backward`` by :meth:`loss_and_grads`.
    :raises ValueError: for ``num_particles`` below 1.
    """

    #: what a multi-sample objective needs of the guide that not every guide can give
    needs_replay = False
    #: whether it asks distributions for no more than densities, draws and divergences, as they give under vmap
    under_vmap = True
    #: whether the guide's enumerated sites are summed exactly
    sums_guide = False
    #: whether the bound is a logarithm of averaged weights, so that a scale inside of it matters
    averages_weights = True
    #: fewest particles that it works with
    min_particles = 1
    side = cast("str | None", "lower")
    metric = BOUND

    num_particles: int = 1
    max_plate_nesting: float = float("inf")
    vectorize_particles: bool = True
    strict_enumeration_warning: bool = True
    ignore_jit_warnings: bool = False
    jit_options: dict[str, Any] | None = None
    retain_graph: bool | None = None

    def __post_init__(self) -> None:
        check_count("num_particles", self.num_particles)
        if self.num_particles < self.min_particles:
            raise ValueError(
                f"num_particles must be at least {self.min_particles} for {type(self).__name__}, got "
                f"{self.num_particles}: with one particle use ELBO"
            )
        if self.max_plate_nesting != float("inf"):
            check_count("max_plate_nesting", self.max_plate_nesting, 0)
        # Pyro's attribute counts the particle plate; ours keeps what was asked for.
        self._given_nesting = self.max_plate_nesting
        super().__init__(
            num_particles=self.num_particles,
            max_plate_nesting=self.max_plate_nesting,
            vectorize_particles=self.vectorize_particles,
            strict_enumeration_warning=self.strict_enumeration_warning,
            ignore_jit_warnings=self.ignore_jit_warnings,
            jit_options=self.jit_options,
            retain_graph=self.retain_graph,
        )
        self._structures = StructureCache()
        self._checked = StructureCache()  # of the pairs that this objective can work with, as it runs them
        self._built = False  # whether ``learned`` is what ``build_learned`` gave, which may be nothing

    # What a subclass gives

    def bound_of(self, particles: Particles) -> Tensor:
        """The bound of each datum, nats, without the outer scale: by default the IWAE bound, or the ELBO where the
        objective does not average weights.
        """
        log_w = particles.log_weights
        return log_mean_exp(log_w) if self.averages_weights else log_w.mean(0)

    @abstractmethod
    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        """A scalar whose gradient is the estimator's gradient of ``outer_scale * bound.sum()``."""

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        """The shared evaluation, once.  ``grad`` says whether :meth:`surrogate_of` will be called."""
        return self.run(model, guide, args, kwargs)

    def pair(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Pair:
        """Model and guide with their batch and structure."""
        return Pair(model, guide, args, kwargs, self.structure(model, guide, args, kwargs))

    def run(
        self,
        model: Any,
        guide: Any,
        args: tuple,
        kwargs: dict,
        rewrite: Callable[[poutine.Trace, int], poutine.Trace] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Particles:
        """Run the pair with this objective's particles; see :func:`~.evaluation.evaluate.run_pairs`."""
        structure = self._checked.known(model, guide) or self.structure(model, guide, args, kwargs)
        pair = Pair(model, guide, args, kwargs, structure)
        particles = run_pairs(pair, self.num_particles, self.vectorize_particles, rewrite, before)
        particles.averages_weights = self.averages_weights
        return particles

    def dry_run(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particles:
        """One particle, without a trace in random state, buffers or handlers: for the sizes of learned networks."""
        with looking_at(model, guide):  # run_pairs turns gradients on where the program needs them
            return run_pairs(Pair(model, guide, args, kwargs, self._structures.get(model, guide, args, kwargs)))

    # What is the same for all

    @property
    def _added(self) -> AddedDims | None:
        """The dimensions that a program may be written for: those to the left of the plates that were asked for."""
        if self._given_nesting == float("inf"):
            return None
        return AddedDims(int(self._given_nesting), self.num_particles if self.vectorize_particles else 1)

    def check(self, program: Any, args: tuple, kwargs: dict) -> None:
        self.structure(program.model, program.guide, args, kwargs)

    def is_prepared(self, model: Any, guide: Any) -> bool:
        return self._checked.known(model, guide) is not None

    def prepare(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> None:
        self.structure(model, guide, args, kwargs)

    def is_sum(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> bool:
        return self.bound(model, guide, *args, **kwargs).numel() > 1

    def structure(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Structure:
        """Static facts of the pair, looked up (and the pair checked) when it is first seen."""
        structure = self._checked.known(model, guide)
        if structure is not None:
            return structure
        structure = self._structures.get(model, guide, args, kwargs, self._added)
        if not self._built:
            self.learned, self._built = self.build_learned(model, guide, args, kwargs), True
        if self.needs_replay and guide_messenger(guide) is not None:
            raise TypeError(
                f"{type(self).__name__} evaluates the guide at given values, which a GuideMessenger guide cannot do: "
                "use an ordinary guide, or ELBO or IWAE"
            )
        if structure.guide_enumerates and not self.sums_guide and self.strict_enumeration_warning:
            warnings.warn(
                f"{type(self).__name__} samples the guide's sites that are marked for enumeration (score function); "
                "ELBO sums them exactly",
                stacklevel=3,
            )
        if self._given_nesting != float("inf"):
            structure = replace(structure, nesting=int(self._given_nesting))
        structure = replace(structure, under_vmap=self.under_vmap)
        self._checked.put(model, guide, structure)
        return structure

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        """Loss and, with ``grad``, surrogate loss; neither is checked nor moved to the host."""
        structure = self._checked.known(model, guide) or self.structure(model, guide, args, kwargs)
        if self.sums_guide and structure.enumerates:
            return self.estimate_sum(Pair(model, guide, args, kwargs, structure), grad)
        # Messages of parameters are for handlers around the objective (SVI's, a recorder's).
        with param_messages(bool(_PYRO_STACK)):
            if self.learned is not None:
                emit_param_messages(self.learned)
            particles = self.particles(model, guide, args, kwargs, grad)
        bound = self.bound_of(particles)
        loss = -(particles.outer_scale * bound.sum())
        return loss, -self.surrogate_of(particles, bound) if grad else None

    def estimate_sum(self, pair: Pair, grad: bool) -> tuple[Tensor, Tensor | None]:
        """:meth:`estimate` of the ELBO with all marked sites summed out, where :attr:`sums_guide` says so."""
        loss = -enumerated_elbo(self, pair)
        return loss, loss if grad else None

    @leaves_the_store
    @torch.no_grad()
    def bound(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """The bound of each datum, in nats and without gradients.

        Its shape is that of the plates that contain every sample site; with a global latent the bound is that of the
        whole batch, a scalar.  Subsampling scale is not in it.
        """
        return self.bound_of(self.particles(model, guide, args, kwargs, grad=False))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        return run_pairs(self.pair(model, guide, args, kwargs)).pairs[0]
