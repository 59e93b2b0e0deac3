"""Base of the kernels that move chains by another kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_dgm.infer.mcmc.kernels.base import Kernel
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential

__all__ = ["ComposedKernel"]


class ComposedKernel(Kernel):
    """A kernel with an inner kernel, whose model or potential, temperature and initial values it takes over.

    :param model: a Pyro model; or the inner kernel, which may have a model or a potential of its own.
    :param potential_fn: ``U`` over chains.
    :param kernel: the inner kernel, if it is not given as ``model``.
    :param default: makes the inner kernel where none is given, from ``settings``.
    :param settings: keywords for ``default``; those that are ``None`` are left out.
    :raises TypeError: if ``kernel`` is no kernel.
    :raises ValueError: if the inner kernel, its model or its potential is given twice; or if there are settings beside
        an inner kernel that was given.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Kernel | None,
        potential_fn: Callable[[Position], Tensor] | None,
        kernel: Kernel | None,
        default: Callable[..., Kernel],
        settings: Mapping[str, Any],
    ) -> None:
        if isinstance(model, Kernel):
            if kernel is not None:
                raise ValueError("give the inner kernel once: first, or as kernel=")
            kernel, model = model, None
        if kernel is not None and not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a pyro_dgm.infer.mcmc.Kernel, got {type(kernel).__name__}")
        given = {k: v for k, v in settings.items() if v is not None}
        if kernel is not None and given:
            raise ValueError(f"{sorted(given)} are settings of the inner kernel: give them to it")
        kernel = default(**given) if kernel is None else kernel
        own = kernel.model is not None or kernel.potential_fn is not None
        if own and (model is not None or potential_fn is not None):
            raise ValueError("the inner kernel already has a model or potential of its own; give it once")
        super().__init__(
            kernel.model if own else model,
            kernel.potential_fn if own else potential_fn,
            temperature=kernel.temperature,
            init_strategy=kernel.init_strategy,
            compile=kernel.compile,
            transforms=kernel.given_transforms,
            max_plate_nesting=kernel.max_plate_nesting,
        )
        self.kernel = kernel
        self.uses_gradient, self.adjusted = kernel.uses_gradient, kernel.adjusted
        self.varying_steps, self.initial_step_size = kernel.varying_steps, kernel.initial_step_size

    def condition(self, *args: Any, **kwargs: Any) -> Potential:
        inner = copy.copy(self.kernel)
        inner.model, inner.potential_fn = self.model, self.potential_fn
        self._inner, self.potential = inner, inner.condition(*args, **kwargs)
        return self.potential

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_inner"}

    def inner(self, potential: Potential) -> Kernel:
        """The inner kernel, bound to a potential."""
        bound = self.__dict__.get("_inner", self.kernel)
        # Attribute by attribute, because copy.copy would leave out what the kernel is bound to.
        kernel: Kernel = object.__new__(type(bound))
        kernel.__dict__.update(bound.__dict__)
        kernel.potential = potential
        return kernel
