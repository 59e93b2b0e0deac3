"""The contract of the objectives: Pyro's ``ELBO`` with all four methods, and a bound per datum."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO as PyroELBO
from pyro.infer.elbo import ELBOModule
from pyro.poutine.runtime import _PYRO_STACK
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.evaluate import run_pairs
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.evaluation.vectorization import is_other_way
from pyro_dgm.infer.objectives.metric import BOUND, Metric
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.programs import announce_parameters, announcing, owner_modules
from pyro_dgm.programs.parameters import leaves_the_store
from pyro_dgm.programs.structure import AddedDims, Structure, StructureCache, guide_messenger

__all__ = ["Objective", "ObjectiveModule"]


class ObjectiveModule(ELBOModule):
    """``objective(model, guide)``: a module whose forward is the loss of a batch.

    Where model or guide is a bound method, the module that it belongs to is a submodule too, so that
    ``objective(vae.model, vae.guide).parameters()`` are the parameters to train.
    """

    def __init__(self, model: Any, guide: Any, elbo: PyroELBO) -> None:
        super().__init__(model, guide, elbo)
        owners = [m for fn in (model, guide) for m in owner_modules(fn) if m is not fn]
        if owners:
            self._owners = torch.nn.ModuleList(dict.fromkeys(owners))
        self._take_learned()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().forward(*args, **kwargs)
        self._take_learned()  # built when the program is first seen
        return loss

    def _take_learned(self) -> None:
        learned = getattr(self.elbo, "learned", None)
        if learned is not None and getattr(self, "learned", None) is not learned:
            self.learned = learned


class Objective(PyroELBO):
    """Base of the objectives.

    A subclass gives :meth:`bound_of` and :meth:`surrogate_of`, functions of the shared evaluation
    (:class:`~pyro_dgm.infer.objectives.evaluation.particles.Particles`).  The loss of a batch is

    .. math:: -s \\sum_d L_d

    with :math:`L_d` the bound of a datum and :math:`s` the scale of subsampled plates and mini-batches, which stays
    outside the logarithm.

    :param num_particles: number K of particles.
    :param max_plate_nesting: deepest nesting of plates; looked up by running the pair once if not given.
    :param vectorize_particles: run all particles at once: in a plate to the left of all others where the program
        broadcasts, else under ``torch.vmap``; a program that takes neither runs them one after another, and a warning
        says why.  The first batch of a pair is held against runs of single particles.  ``False`` runs them one by one.
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
    #: fewest particles that the class works with on its defaults
    min_particles = 1
    #: what ``bound`` is of log p(x) in expectation: ``"lower"``, ``"upper"``, or ``None`` where it is no bound
    side: str | None = "lower"
    #: what the value per datum is called in a run's history, its unit, and which way is better
    metric: Metric = BOUND
    #: networks that the objective trains beside the program's (a baseline, a discriminator); built at first sight of it
    learned: torch.nn.Module | None = None
    #: training evaluations so far; what follows a schedule is a function of it
    step = 0

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = True,
        strict_enumeration_warning: bool = True,
        ignore_jit_warnings: bool = False,
        jit_options: dict[str, Any] | None = None,
        retain_graph: bool | None = None,
    ) -> None:
        check_count("num_particles", num_particles)
        if max_plate_nesting != float("inf"):
            check_count("max_plate_nesting", max_plate_nesting, 0)
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=strict_enumeration_warning,
            ignore_jit_warnings=ignore_jit_warnings,
            jit_options=jit_options,
            retain_graph=retain_graph,
        )
        # Pyro's attribute counts the particle plate; ours keeps what was asked for.
        self._given_nesting = max_plate_nesting
        self._structures = StructureCache()
        self._built = False  # whether ``learned`` is what ``build_learned`` gave, which may be nothing

    # What a subclass gives

    @abstractmethod
    def bound_of(self, particles: Particles) -> Tensor:
        """The bound of each datum, nats, without the outer scale."""

    @abstractmethod
    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        """A scalar whose gradient is the estimator's gradient of ``outer_scale * bound.sum()``."""

    def build_learned(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> torch.nn.Module | None:
        """Make :attr:`learned`: of this batch's sizes, on its device, in its dtype; ``None`` where there is none.

        The surrogate must give these parameters the gradient of their own loss, and the program none of it.
        """
        return None

    def advance(self) -> None:
        """Called once before each training evaluation, never inside a captured graph.

        What changes from step to step (the weight of an annealed KL) is a tensor that is filled in place here: a
        captured graph reads tensors, and would freeze a number.
        """
        self.step += 1

    @property
    def scheduled(self) -> bool:
        """Whether :meth:`advance` changes what is evaluated, so that one graph cannot hold several steps."""
        return type(self).advance is not Objective.advance

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of :attr:`learned`, for an optimiser."""
        return [] if self.learned is None else list(self.learned.parameters())

    def state_dict(self) -> dict[str, Any]:
        """What going on with training needs of the objective; :attr:`learned` is saved with the weights."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.step = state["step"]

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        """The shared evaluation, once.  ``grad`` says whether :meth:`surrogate_of` will be called."""
        return run_pairs(
            model,
            guide,
            args,
            kwargs,
            self.num_particles,
            self.structure(model, guide, args, kwargs),
            self.vectorize_particles,
        )

    # What is the same for all

    @property
    def _added(self) -> AddedDims | None:
        """The dimensions that a program may be written for: those to the left of the plates that were asked for."""
        if self._given_nesting == float("inf"):
            return None
        return AddedDims(int(self._given_nesting), self.num_particles if self.vectorize_particles else 1)

    def __call__(self, model: Any, guide: Any) -> ObjectiveModule:
        return ObjectiveModule(model, guide, self)

    def structure(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Structure:
        """Static facts of the pair, looked up (and the pair checked) when it is first seen."""
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
        return structure if self.under_vmap else replace(structure, under_vmap=False)

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        """Loss and, with ``grad``, surrogate loss; neither is checked nor moved to the host."""
        # Handlers around the objective (SVI's, a recorder's) hear of parameters; the objective does not need to.
        with announcing(bool(_PYRO_STACK)):
            if self.learned is not None:
                announce_parameters(self.learned)
            particles = self._particles(model, guide, args, kwargs, grad)
        bound = self.bound_of(particles)
        loss = -(particles.outer_scale * bound.sum())
        return loss, -self.surrogate_of(particles, bound) if grad else None

    @leaves_the_store
    @torch.no_grad()
    def bound(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """The bound of each datum, in nats and without gradients.

        Its shape is that of the plates that contain every sample site; with a global latent the bound is that of the
        whole batch, a scalar.  Subsampling scale is not in it.
        """
        return self.bound_of(self._particles(model, guide, args, kwargs, grad=False))

    def _particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> Particles:
        """The shared evaluation, once more in another way where this batch cannot be run as the first one was."""
        try:
            particles = self.particles(model, guide, args, kwargs, grad)
        except Exception:
            pair = Pair(model, guide, args, kwargs, self.structure(model, guide, args, kwargs))
            if not is_other_way(pair, self.num_particles, self.vectorize_particles):
                raise
            particles = self.particles(model, guide, args, kwargs, grad)
        particles.averages_weights = self.averages_weights
        return particles

    @leaves_the_store
    @torch.no_grad()
    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss of the whole batch, nats: minus the scaled sum of the bounds."""
        loss = self.estimate(model, guide, args, kwargs, grad=False)[0]
        return float(warn_if_nan(loss, "loss"))

    @leaves_the_store
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss of the whole batch as a tensor whose ``backward`` gives the estimator's gradient."""
        if not torch.is_grad_enabled():
            return self.estimate(model, guide, args, kwargs, grad=False)[0]
        self.advance()
        loss, surrogate = self.estimate(model, guide, args, kwargs, grad=True)
        assert surrogate is not None
        return loss.detach() + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss of the whole batch; gradients are added to the parameters' ``.grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(warn_if_nan(loss.detach(), "loss"))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        structure = self.structure(model, guide, args, kwargs)
        return run_pairs(model, guide, args, kwargs, 1, structure, False).pairs[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_particles={self.num_particles})"
