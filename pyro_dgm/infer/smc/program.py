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

from pyro_dgm.capture.unvalidated import unvalidated
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.potentials.sites import Feasible, latent_sites, refuse_subsampling
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.runners import Runner
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.evaluation.vectorization import strategy_for
from pyro_dgm.ops.arguments import check_choice
from pyro_dgm.programs.site_checks import check_shapes
from pyro_dgm.programs.structure import Structure, probe, sample_sites

__all__ = ["ProgramEnds", "simulate"]


class ProgramEnds:
    r"""Start and target of a path over a program's latents given data: from :math:`p(z)` or :math:`q(z \mid x)` to
    :math:`p(x, z)`.

    A position has ``chains * data`` rows for each latent, in unconstrained coordinates: the data are the elements of
    the plates that contain every site (:attr:`~pyro_dgm.infer.objectives.evaluation.particles.Particles.shape`), and
    each has chains, and an acceptance, of its own.  With a latent outside of those plates there is one joint set of
    chains.

    :param program: with ``model`` and ``guide``.
    :param initial: ``"prior"`` or ``"guide"``.
    :raises ValueError: for discrete latents, a subsampled plate, no latent at all, or an unknown ``initial``.
    """

    def __init__(self, program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], initial: str = "prior") -> None:
        check_choice("initial", initial, "prior", "guide")
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
        sites = sample_sites(trace)
        dims = [f.dim for s in sites.values() for f in s["cond_indep_stack"] if f.vectorized]
        self.nesting = -min(dims) if dims else 0
        if initial == "guide":
            self.nesting = max(self.nesting, probe(self.model, self.guide, args, self.kwargs).nesting)
        #: batch dimensions of each latent, as the program has them
        self.batch_dims = {n: sites[n]["value"].dim() - sites[n]["fn"].event_dim for n in self.names}
        self._prior = poutine.block(self.model, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])
        self._runners: dict[int, Runner] = {}
        #: places of the plates that index data among a site's batch dimensions, and their sizes
        self.places: list[int] = []
        self.shape = torch.Size()
        try:
            pairs = self.draw_traces(2)
        except NotImplementedError as error:
            raise ValueError(
                f"chains start at draws of the {initial}, and a latent has none ({str(error).splitlines()[0]}): "
                "initial='guide' begins at the guide's"
            ) from error
        drawn = self.particles([(_split(model)[0], guide) for model, guide in pairs], 2)
        self.shape = drawn.shape
        self.places = [self.nesting + 1 + f.dim for f in drawn.plates]

    def runner(self, num_chains: int) -> Runner:
        """How the program is run for so many chains: together, where it can be."""
        if num_chains not in self._runners:
            guide = self.guide if self.initial == "guide" else self._prior
            pair = Pair(self.model, guide, self.args, self.kwargs, Structure(self.nesting, False, False))
            self._runners[num_chains] = strategy_for(pair, num_chains).runner(num_chains, self.nesting)
        return self._runners[num_chains]

    # Draws

    def draw_traces(self, num_chains: int) -> list[tuple[poutine.Trace, poutine.Trace]]:
        """Model and guide run for all chains, latents drawn from the start of the path."""
        runner, free = self.runner(num_chains), _Free(self.model, self.names)
        pairs = []
        with torch.no_grad(), poutine.block():
            for _ in range(runner.runs):
                if self.initial == "prior":
                    pairs.append((runner.run(free, self.args, self.kwargs), poutine.Trace()))
                    continue
                guide = runner.run(self.guide, self.args, self.kwargs)
                pairs.append((runner.run(free, self.args, self.kwargs, guide), guide))
        return pairs

    def draw(self, num_chains: int) -> Position:
        """A position drawn from the start."""
        traces = [_split(model)[1] for model, _ in self.draw_traces(num_chains)]
        position = {}
        for name in self.names:
            u = [self._aligned(trace[name]["value"], name, num_chains) for trace in traces]
            position[name] = self._rows(u[0] if len(u) == 1 else torch.cat(u))
        return position

    def _aligned(self, u: Tensor, name: str, num_chains: int) -> Tensor:
        """Values of chains, or of one, with the chains to the left of the plates."""
        if self.runner(num_chains).vectorized:
            return u
        missing = self.nesting - self.batch_dims[name]
        return u.reshape(*(1 for _ in range(1 + missing)), *u.shape)

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
        runner, chains = self.runner(num_chains), {k: self._unrows(v) for k, v in position.items()}
        with pyro.validation_enabled(False), poutine.block():
            pairs, log_dets = [], []
            for c in range(runner.runs):
                model, extra = _split(self._model_at(runner, chains if runner.vectorized else self._chain(chains, c)))
                guide = poutine.Trace()
                if self.initial == "guide":
                    guide = runner.run(self.guide, self.args, self.kwargs, _latents_of(model, self.names), scores=True)
                pairs.append((model, guide))
                log_dets.append(extra)
            particles = self.particles(pairs, num_chains)
            rows: list[Any] = [
                sum(particles.reduce(particles.log_prob(s)) for s in added.values()) for added in log_dets
            ]
            log_det = torch.cat(rows)
            if self.initial == "guide":
                start = particles.log_q
            else:

                def prior(model: poutine.Trace, _: poutine.Trace) -> Tensor:
                    sites: list[Any] = [model.nodes[name] for name in self.names]
                    terms = [particles.reduce(particles.inner(particles.log_prob(s), s), s) for s in sites]
                    return sum(terms[1:], terms[0])

                start = particles.stack(prior)
            return -(start + log_det).flatten(), -(particles.log_p + log_det).flatten()

    def _model_at(self, runner: Runner, values: dict[str, Tensor]) -> poutine.Trace:
        given = poutine.Trace()
        for name, u in values.items():
            given.add_node(name, type="sample", name=name, value=u, is_observed=False, fn=None, infer={})
        events = {name: u.dim() - self.nesting - 1 if runner.vectorized else 0 for name, u in values.items()}
        dims = {name: self.batch_dims[name] + events[name] for name in values}
        return runner.run(self.model, self.args, self.kwargs, given, replay=_given, dims=dims)

    def _chain(self, chains: dict[str, Tensor], c: int) -> dict[str, Tensor]:
        """The latents of one chain, in the shapes of a run of it alone."""
        return {k: u[c].reshape(u.shape[1 + self.nesting - self.batch_dims[k] :]) for k, u in chains.items()}

    def particles(self, pairs: list[tuple[poutine.Trace, poutine.Trace]], num_chains: int) -> Particles:
        """The objectives' view of such traces."""
        return Particles(pairs, num_chains, self.nesting, self.runner(num_chains).vectorized)


#: what is appended to a latent's name for the site of its log-Jacobian, and of its unconstrained value
EXTRA = "__unconstrained"


class _Free(Messenger):
    """A site for the unconstrained value of each latent."""

    def __init__(self, model: Callable[..., Any], names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def __call__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        with self:
            self.model(*args, **kwargs)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            u = biject_to(msg["fn"].support).inv(msg["value"])
            batch = msg["value"].dim() - msg["fn"].event_dim
            pyro.deterministic(msg["name"] + EXTRA, u, event_dim=u.dim() - batch)


def _given(model: Callable[..., Any], trace: poutine.Trace) -> Callable[..., Any]:
    return _Given(trace)(model)


def _split(trace: poutine.Trace) -> tuple[poutine.Trace, dict[str, Any]]:
    """A trace without the sites that were added here; and these, by the latent's name."""
    rest, added = poutine.Trace(), {}
    for name, site in trace.nodes.items():
        if name.endswith(EXTRA):
            # What is around the program is not around these: they are numbers to be handed on.
            added[name.removesuffix(EXTRA)] = {**site, "scale": 1.0, "mask": None}
        elif site["type"] == "sample":
            rest.add_node(name, **site)
    return rest, added


class _Given(Messenger):
    """Gives latents the values of unconstrained coordinates, each by its own site's support."""

    def __init__(self, trace: poutine.Trace) -> None:
        super().__init__()
        self.trace = trace

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = unvalidated(msg["fn"])
        if msg["name"] not in self.trace:
            return
        u, support = self.trace.nodes[msg["name"]]["value"], msg["fn"].support
        transform = biject_to(support)
        value = transform(u)
        log_det = transform.log_abs_det_jacobian(u, value)
        extra = msg["fn"].event_dim - support.event_dim
        pyro.factor(msg["name"] + EXTRA, log_det.flatten(-extra).sum(-1) if extra else log_det)
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
