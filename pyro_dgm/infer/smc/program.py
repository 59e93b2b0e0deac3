"""A program's latents as chains, one set for each datum: the ends of the path that its likelihood is annealed along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_dgm.infer.elbo.particles import Particles, particle_plate, run_guide
from pyro_dgm.infer.elbo.structure import probe, sample_sites
from pyro_dgm.infer.mcmc.potential import Position
from pyro_dgm.infer.mcmc.sites import Feasible, latent_sites, refuse_subsampling
from pyro_dgm.infer.site_checks import check_shapes
from pyro_dgm.infer.unvalidated import unvalidated

__all__ = ["ProgramEnds", "simulate"]


class ProgramEnds:
    r"""Start and target of a path over a program's latents given data: from :math:`p(z)` or :math:`q(z \mid x)` to
    :math:`p(x, z)`.

    A position has ``chains * data`` rows for each latent, in unconstrained coordinates: the data are the elements of
    the plates that hold every site (:attr:`~pyro_dgm.infer.elbo.particles.Particles.shape`), and each has chains, and
    an acceptance, of its own.  With a latent outside of those plates there is one joint set of chains.

    :param program: with ``model`` and ``guide``.
    :param initial: ``"prior"`` or ``"guide"``.
    :raises ValueError: for discrete latents, a subsampled plate, no latent at all, or an unknown ``initial``.
    """

    def __init__(self, program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], initial: str = "prior") -> None:
        if initial not in ("prior", "guide"):
            raise ValueError(f"initial must be 'prior' or 'guide', got {initial!r}")
        self.model, self.guide = program.model, program.guide
        self.args, self.kwargs, self.initial = args, dict(kwargs), initial
        with torch.no_grad(), poutine.block():
            trace: Any = poutine.trace(Feasible()(self.model)).get_trace(*args, **kwargs)
        refuse_subsampling(trace, "annealing")
        if is_validation_enabled():
            check_shapes(trace)
        self.names = list(latent_sites(trace))
        if not self.names:
            raise ValueError("the model has no latent site: its log-likelihood is its log-joint, and needs no estimate")
        for name in self.names:
            if trace.nodes[name]["fn"].support.is_discrete:
                raise ValueError(
                    f"latent site {name!r} is discrete, which annealing by a gradient cannot move: use method='iwae'"
                )
        dims = [f.dim for s in sample_sites(trace).values() for f in s["cond_indep_stack"] if f.vectorized]
        self.nesting = -min(dims) if dims else 0
        if initial == "guide":
            self.nesting = max(self.nesting, probe(self.model, self.guide, args, self.kwargs).nesting)
        #: places of the plates that index data among a site's batch dimensions, and their sizes
        self.places: list[int] = []
        self.shape = torch.Size()
        try:
            pair = self.draw_traces(2)
        except NotImplementedError as error:
            raise ValueError(
                f"chains start at draws of the {initial}, and a latent has none ({str(error).splitlines()[0]}): "
                "initial='guide' begins at the guide's"
            ) from error
        drawn = self.particles(pair, 2)
        self.shape = drawn.shape
        self.places = [self.nesting + 1 + f.dim for f in drawn.plates]

    # Draws

    def draw_traces(self, num_chains: int) -> tuple[poutine.Trace, poutine.Trace]:
        """Model and guide run in a plate of chains, latents drawn from the start of the path."""
        plate = particle_plate(num_chains, self.nesting, True)
        with torch.no_grad(), poutine.block():
            if self.initial == "prior":
                return poutine.trace(plate(self.model)).get_trace(*self.args, **self.kwargs), poutine.Trace()
            guide = run_guide(self.guide, self.args, self.kwargs, plate)
            plate = particle_plate(num_chains, self.nesting, True)
            model = poutine.trace(poutine.replay(plate(self.model), trace=guide))
            return model.get_trace(*self.args, **self.kwargs), guide

    def draw(self, num_chains: int) -> Position:
        """A position drawn from the start."""
        return self.position_of(self.draw_traces(num_chains)[0])

    def position_of(self, trace: poutine.Trace) -> Position:
        """The position of a model trace that was run in a plate of chains."""
        position = {}
        with torch.no_grad():
            for name in self.names:
                site: Any = trace.nodes[name]
                position[name] = self._rows(biject_to(site["fn"].support).inv(site["value"]))
        return position

    def repeated(self, trace: poutine.Trace, num_chains: int) -> Position:
        """The position of ``num_chains`` chains that all start at the one value of a model trace."""
        position = {}
        for name in self.names:
            site: Any = trace.nodes[name]
            u = biject_to(site["fn"].support).inv(site["value"])
            missing = self.nesting - len(site["fn"].batch_shape)
            u = u.reshape(*(1 for _ in range(1 + missing)), *u.shape)
            position[name] = self._rows(u.expand(num_chains, *u.shape[1:]))
        return position

    def _rows(self, u: Tensor) -> Tensor:
        """Chains and data to the front, and together: ``(chains * data, ...)``."""
        u = u.movedim(self.places, list(range(1, 1 + len(self.places))))
        return u.flatten(0, len(self.places)).clone()

    def _unrows(self, rows: Tensor) -> Tensor:
        u = rows.reshape(-1, *self.shape, *rows.shape[1:])
        return u.movedim(list(range(1, 1 + len(self.places))), self.places)

    # Densities

    def both(self, position: Position) -> tuple[Tensor, Tensor]:
        """Potentials of start and target, ``(chains * data,)`` each."""
        num_chains = next(iter(position.values())).shape[0] // self.shape.numel()
        with pyro.validation_enabled(False), poutine.block():
            plate = particle_plate(num_chains, self.nesting, True)
            with _Given({k: self._unrows(v) for k, v in position.items()}) as given:
                model = poutine.trace(plate(self.model)).get_trace(*self.args, **self.kwargs)
            guide = poutine.Trace()
            if self.initial == "guide":
                plate = particle_plate(num_chains, self.nesting, True)
                guide = run_guide(self.guide, self.args, self.kwargs, plate, _latents_of(model, self.names))
            particles = self.particles((model, guide), num_chains)
            log_det: Any = sum(particles.reduce(t) for t in given.log_dets)
            if self.initial == "guide":
                start: Any = particles.log_q
            else:
                sites = [model.nodes[name] for name in self.names]
                start = sum(particles.reduce(particles.inner(particles.log_prob(s), s), s) for s in sites)
            return -(start + log_det).flatten(), -(particles.log_p + log_det).flatten()

    def particles(self, pair: tuple[poutine.Trace, poutine.Trace], num_chains: int) -> Particles:
        """The objectives' view of such a pair of traces."""
        return Particles([pair], num_chains, self.nesting, True)


class _Given(Messenger):
    """Gives latents the values of unconstrained coordinates, each by its own site's support."""

    def __init__(self, position: Position) -> None:
        super().__init__()
        self.position = position
        self.log_dets: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = unvalidated(msg["fn"])
        if msg["name"] not in self.position:
            return
        u, support = self.position[msg["name"]], msg["fn"].support
        transform = biject_to(support)
        value = transform(u)
        log_det = transform.log_abs_det_jacobian(u, value)
        extra = msg["fn"].event_dim - support.event_dim
        self.log_dets.append(log_det.flatten(-extra).sum(-1) if extra else log_det)
        msg["value"], msg["done"] = value, True


def _latents_of(model: poutine.Trace, names: list[str]) -> poutine.Trace:
    trace = poutine.Trace()
    for name in names:
        trace.add_node(name, **model.nodes[name])
    return trace


def simulate(
    program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[poutine.Trace, dict[str, Tensor], Any, tuple[Any, ...], dict[str, Any]]:
    """Draw latents and data from the model, in the shapes of a batch.

    :returns: the trace; the simulated data by site; a program whose model observes them; and the arguments with the
        simulated data in the place of those that were observed.
    """
    with torch.no_grad(), poutine.block():
        real = poutine.trace(program.model).get_trace(*args, **kwargs)
        observed = [n for n, s in sample_sites(real).items() if s["is_observed"]]
        model: Callable[..., Any] = poutine.uncondition(program.model)
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    data: dict[str, Any] = {name: trace.nodes[name]["value"] for name in observed}

    def replaced(value: Any) -> Any:
        for name in observed:
            was = real.nodes[name]["value"]
            if isinstance(value, Tensor) and (value is was or (value.shape == was.shape and torch.equal(value, was))):
                return data[name]
        return value

    new_args = tuple(replaced(a) for a in args)
    new_kwargs = {k: replaced(v) for k, v in kwargs.items()}
    conditioned = poutine.condition(program.model, data=data)
    return trace, data, _Pair(conditioned, program.guide), new_args, new_kwargs


class _Pair:
    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        self.model, self.guide = model, guide
