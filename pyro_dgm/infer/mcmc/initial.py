"""Where chains begin, and the generators that their randomness comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_dgm.infer.mcmc.chains import finite_chains
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential
from pyro_dgm.infer.mcmc.potentials.sites import latent_sites
from pyro_dgm.programs import owner_modules

__all__ = ["device_of", "draw_initial", "far_behind", "initial_position", "new_generator", "radius_of"]

MAX_TRIES = 100
#: draws for a chain that is far behind the others, before it may begin there
FAR_TRIES = 10
#: of the uniform draws that chains begin at, in unconstrained space
RADIUS = 2.0


def device_of(
    model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], params: Position | None = None
) -> torch.device:
    """The device that a run lives on: of the initial values, the data, the model's parameters, or the default."""
    tensors = [v for v in (*(params or {}).values(), *args, *kwargs.values()) if isinstance(v, Tensor)]
    if tensors:
        return tensors[0].device
    for module in owner_modules(model):
        for parameter in module.parameters():
            return parameter.device
    return torch.get_default_device()


def new_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of its own on a device."""
    return torch.Generator(device=device).manual_seed(seed)


def initial_position(
    potential: Potential,
    strategy: str | Callable[[Any], Tensor],
    num_chains: int,
    generator: torch.Generator,
    params: Position | None = None,
) -> Position:
    """Unconstrained initial values at which every chain's potential and gradient are finite.

    A potential without gradient (:class:`~pyro_dgm.infer.mcmc.potentials.wrapped.ValuePotential`) is asked for none; of
    one that is not known at all nothing is asked.

    :param params: values to begin at, each ``(chains, ...)`` and unconstrained, or ``None`` to draw them; chains at
        which the potential is not finite are drawn anew up to 100 times, given ones are not.
    :raises ValueError: if shapes are wrong, or a chain has no finite start; the message names the sites.
    """
    model = _of_model(potential)
    if params is not None:
        position = _checked(potential, params, num_chains)
        if not potential.known:
            return position
        bad = ~finite_chains(*potential(position))
        if bool(bad.any()):
            chains = bad.nonzero().flatten()
            why = potential.explain({k: v[chains] for k, v in position.items()})
            raise ValueError(f"initial_params of chains {chains.tolist()[:10]} have no finite potential: {why}")
        if model is not None:
            model.check_valid(position)
        return position
    if model is None:
        raise ValueError("a kernel with potential_fn needs initial_params: a dict of (num_chains, ...) tensors")
    position = draw_initial(model, strategy, num_chains, generator)
    for attempt in range(MAX_TRIES):
        values, gradients = potential(position)
        bad = ~finite_chains(values, gradients)
        if attempt < FAR_TRIES and not bool(bad.any()):
            bad = far_behind(values, position)
        chains = bad.nonzero().flatten()
        if len(chains) == 0:
            model.check_valid(position)
            return position
        fresh = draw_initial(model, strategy, len(chains), generator, radius_of(attempt))
        position = {k: v.index_copy(0, chains, fresh[k]) for k, v in position.items()}
    why = potential.explain({k: v[chains] for k, v in position.items()})
    raise ValueError(
        f"{len(chains)} of {num_chains} chains found no finite potential in {MAX_TRIES} initial draws: {why}"
    )


def far_behind(values: Tensor, position: Position) -> Tensor:
    r"""Chains whose potential is far above that of the others, ``(chains,)``.

    A recursion over 200 steps with a coefficient of 1.3 has a potential of :math:`10^{45}` and a gradient to match; one
    chain there needs steps so small that no other moves, and would slow down all, since they share a step size. The
    bound is a thousand times the range of the best quarter of the chains, so that other chains are never concerned.

    :param values: potentials, ``(chains,)``, nats; one that is not finite counts as far behind.
    """
    finite = torch.isfinite(values)
    if len(values) < 4 or not bool(finite.any()):
        return ~finite
    size = sum(v[0].numel() for v in position.values())
    known = values[finite].sort().values
    least, quarter = known[0], known[(len(known) - 1) // 4]
    return ~(values <= quarter + 1000.0 * (quarter - least + size + 10))


def _of_model(potential: Potential) -> ModelPotential | None:
    """The model's potential within what a kernel made of it (without gradient, on mini-batches, relaxed)."""
    inner: Any = potential
    while inner is not None and not isinstance(inner, ModelPotential):
        inner = getattr(inner, "base", None)
    return inner


def radius_of(attempt: int) -> float:
    """Radius of the uniform draw that follows a number of draws without a finite density: half, after every ten.

    Far from zero a matrix of many dimensions is singular in floating point, as good as always (``LKJCholesky(30)``).
    """
    return RADIUS * 0.5 ** ((attempt + 1) // 10)


def draw_initial(
    potential: ModelPotential,
    strategy: str | Callable[[Any], Tensor],
    num_chains: int,
    generator: torch.Generator,
    radius: float = RADIUS,
) -> Position:
    """Unconstrained positions ``(num_chains, ...)`` by a strategy; their density may not be finite.

    :param radius: of the cube of ``"uniform"``.
    """
    if strategy == "uniform":
        return {
            name: radius
            * (2 * torch.rand((num_chains, *v.shape), generator=generator, dtype=v.dtype, device=v.device) - 1)
            for name, v in potential.latents.items()
        }
    model = potential.model if strategy == "prior" else InitMessenger(strategy)(potential.model)
    rows = []
    with torch.no_grad(), pyro.validation_enabled(False):
        for _ in range(num_chains):
            try:
                sites = latent_sites(poutine.trace(model).get_trace(*potential.args, **potential.kwargs))
            except NotImplementedError as error:
                raise ValueError(
                    f"init_strategy {strategy!r} draws from the prior, and a latent has one that cannot be drawn from "
                    f"({str(error).splitlines()[0]}): begin at 'uniform', or at init_to_value(values=...)"
                ) from error
            rows.append(
                {name: biject_to(sites[name]["fn"].support).inv(sites[name]["value"]) for name in potential.latents}
            )
    return {name: torch.stack([row[name] for row in rows]) for name in potential.latents}


def _checked(potential: Potential, params: Position, num_chains: int) -> Position:
    if not isinstance(params, Mapping) or not params:
        raise ValueError(f"initial_params must be a non-empty dict of tensors, got {type(params).__name__}")
    discrete = potential.discrete
    for name, value in params.items():
        if not isinstance(value, Tensor) or value.is_complex() or not (value.is_floating_point() or discrete):
            raise TypeError(
                f"initial_params[{name!r}] must be a {'real' if discrete else 'floating-point'} tensor, "
                f"got {getattr(value, 'dtype', type(value).__name__)}"
            )
        if value.dim() == 0 or value.shape[0] != num_chains:
            raise ValueError(
                f"initial_params[{name!r}] must have num_chains = {num_chains} as leading size, "
                f"got shape {tuple(value.shape)}"
            )
    potential.check(params)
    model = _of_model(potential)
    if model is not None:
        if set(params) != set(model.latents):
            raise ValueError(f"initial_params must be for the latents {sorted(model.latents)}, got {sorted(params)}")
        for name, latent in model.latents.items():
            if params[name].shape[1:] != latent.shape:
                raise ValueError(
                    f"initial_params[{name!r}] must have shape ({num_chains}, *{tuple(latent.shape)}) "
                    f"in unconstrained space, got {tuple(params[name].shape)}"
                )
        return {k: params[k].detach().to(latent.device, latent.dtype) for k, latent in model.latents.items()}
    return {k: v.detach() for k, v in params.items()}
