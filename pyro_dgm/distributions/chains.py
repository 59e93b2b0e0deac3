"""Chains for a density known up to a constant: Langevin steps, or a kernel that is handed in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution, biject_to

from pyro_dgm.ops.arguments import check_positive
from pyro_dgm.ops.langevin import langevin_step

__all__ = ["check_kernel", "is_real", "run_chains"]

#: under which the values go through a kernel, which moves named tensors
VALUE = "value"


@torch.no_grad()
def run_chains(
    log_prob: Callable[[Tensor], Tensor],
    state: Tensor,
    num_steps: int,
    *,
    step_size: float = 0.1,
    kernel: Any = None,
    support: Any = constraints.real,
    what: str = "chains",
) -> Tensor:
    r"""``num_steps`` transitions of chains towards :math:`e^{f(x)}`, in the unconstrained coordinates of its support.

    Without a kernel they are Langevin steps, :math:`u' = u + \frac{\epsilon^2}{2} \nabla f(u) + \epsilon \xi`, at
    temperature 1: another temperature is a factor in :math:`f`.

    :param log_prob: :math:`f`, from values ``(chains, *event_shape)`` to ``(chains,)``, nats; a chain's entry depends
        on that chain alone.
    :param state: where the chains are, ``(chains, *event_shape)``.
    :param step_size: :math:`\epsilon`, of Langevin steps.
    :param kernel: one that :func:`check_kernel` passes; it begins anew, and does not adapt.
    :param support: constraint of the values.
    :param what: what the chains belong to, for the error message.
    :returns: where they are then, without gradients.
    :raises ValueError: if the energy or its gradient is not finite where the chains have come to.
    """
    transform = None if is_real(support) else biject_to(support)
    potential = _DensityPotential(log_prob, transform)
    u = state.detach() if transform is None else transform.inv(state.detach())
    if kernel is None:
        u, value = _langevin(potential, u, num_steps, step_size)
    else:
        u, value = _by_kernel(kernel, potential, u, num_steps)
    # Not while a graph is recorded, which cannot branch on a value: validation is then off.
    if Distribution._validate_args and not bool(torch.isfinite(value.sum() + u.sum())):
        bad = ~(torch.isfinite(value) & torch.isfinite(u.reshape(len(u), -1)).all(-1))
        how = f"Langevin steps of size {step_size:g}" if kernel is None else f"transitions of {type(kernel).__name__}"
        raise ValueError(
            f"{what}: the energy is {float(value[bad][0])} at {int(bad.sum())} of {len(bad)} chains after {num_steps} "
            f"{how}; take a smaller step size, or look for where the energy is not finite"
        )
    return u if transform is None else transform(u)


def is_real(support: Any) -> bool:
    """Whether a support is all reals, of whatever shape."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


def check_kernel(
    kernel: Any,
    target: str = "the density",
    temperature: str = "the temperature is the distribution's, EnergyDistribution(temperature=...), or its draws "
    "would be those of another distribution",
) -> Any:
    """Pass on a kernel (of :mod:`pyro_dgm.infer.mcmc`) that can move a density it is given.

    :param target: what gives it its target, for messages, and ``temperature`` whose temperature counts.
    :raises TypeError: for what has no ``condition``, ``init`` and ``step``.
    :raises ValueError: for one with a target of its own, or at a temperature of its own.
    """
    if isinstance(kernel, type):
        raise TypeError(f"kernel must be an instance, {kernel.__name__}(), got the class itself")
    if not all(callable(getattr(kernel, method, None)) for method in ("condition", "init", "step")):
        raise TypeError(f"kernel must be one of pyro_dgm.infer.mcmc, HMC() say, got {type(kernel).__name__}")
    name = type(kernel).__name__
    if getattr(kernel, "model", None) is not None or getattr(kernel, "potential_fn", None) is not None:
        raise ValueError(f"kernel must have no model or potential of its own: {name}(), {target} gives it its target")
    if getattr(kernel, "temperature", 1.0) != 1.0:
        raise ValueError(f"kernel must have temperature 1, got {kernel.temperature}: {temperature}")
    return kernel


class _DensityPotential:
    """:math:`U(u) = -f(x(u)) - log |dx / du|` and its gradient, as kernels call it."""

    def __init__(self, log_prob: Callable[[Tensor], Tensor], transform: Any) -> None:
        self.log_prob, self.transform = log_prob, transform

    def of(self, u: Tensor) -> Tensor:
        if self.transform is None:
            return -self.log_prob(u)
        x = self.transform(u)
        log_det = self.transform.log_abs_det_jacobian(u, x)
        return -self.log_prob(x) - log_det.reshape(len(u), -1).sum(-1)

    def with_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            value = self.of(leaf)
            if not value.requires_grad:
                raise ValueError("the energy does not depend differentiably on its argument")
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient


def _langevin(potential: _DensityPotential, u: Tensor, num_steps: int, step_size: float) -> tuple[Tensor, Tensor]:
    check_positive("step_size", step_size)
    size = u.new_tensor(step_size)
    for _ in range(num_steps):
        _, gradient = potential.with_gradient(u)
        u = langevin_step(u, gradient, torch.randn_like(u), size)
    return u, potential.of(u)


def _by_kernel(kernel: Any, potential: _DensityPotential, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    bound = copy.copy(kernel)
    bound.potential_fn = lambda position: potential.of(position[VALUE])
    bound.condition()
    # Kernels draw from a generator of their own, which here follows torch's global one.
    generator = torch.Generator(device=u.device).manual_seed(int(torch.randint(2**62, ()).item()))
    state = bound.init({VALUE: u}, generator)
    for _ in range(num_steps):
        state, _ = bound.step(state)
    return state.position[VALUE], state.potential
