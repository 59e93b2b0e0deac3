"""From a Pyro model and its data to a potential over chains, ``U`` and its gradient, in unconstrained space."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Transform, identity_transform

from pyro_dgm.infer.mcmc.graph import operations_of, potential_graph
from pyro_dgm.infer.mcmc.sites import Latent, LogJoint, describe_latents
from pyro_dgm.infer.static_graph import CannotCapture

__all__ = ["FunctionPotential", "ModelPotential", "Potential"]

Position = dict[str, Tensor]

#: evaluations at one number of chains after which the model's graph takes the model's place
GRAPH_AFTER = 20


class Potential(ABC):
    """A potential energy :math:`U` over a leading chain dimension; the target density is :math:`e^{-U}`."""

    #: constrained to unconstrained space, one for each latent whose support is fixed (Pyro's convention)
    transforms: dict[str, Transform]

    @abstractmethod
    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        """``U`` of shape ``(chains,)`` and its gradient."""

    @abstractmethod
    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        """Constrained values of ``(batch, ...)`` positions, and the log-Jacobians, ``(batch,)``."""

    def explain(self, position: Position) -> str:
        """What makes the potential of these chains non-finite, for an error message."""
        values, _ = self(position)
        return f"the potential is {', '.join(f'{v:g}' for v in values.tolist()[:5])} there"

    def __call__(self, position: Position) -> tuple[Tensor, Position]:
        """Value and gradient; a chain at which a matrix factorisation fails has value NaN, and harms no other chain."""
        try:
            return self._evaluate(position)
        except torch.linalg.LinAlgError:
            return self._chain_by_chain(position)

    def value(self, position: Position) -> Tensor:
        """``U`` of shape ``(chains,)`` alone, for kernels that take no gradient."""
        return self(position)[0]

    def _chain_by_chain(self, position: Position) -> tuple[Tensor, Position]:
        # A batched factorisation raises for all chains when one of them is outside its domain.
        rows: list[tuple[Tensor, Position] | None] = []
        num_chains = next(iter(position.values())).shape[0]
        for c in range(num_chains):
            try:
                rows.append(self._evaluate({k: v[c : c + 1] for k, v in position.items()}))
            except torch.linalg.LinAlgError:
                rows.append(None)
        done = next((r for r in rows if r is not None), None)
        like = done[0] if done is not None else next(iter(position.values())).new_zeros(1)
        nan = like.new_full((1,), float("nan"))
        values = torch.cat([nan if r is None else r[0] for r in rows])
        grads = {
            k: torch.cat([torch.full_like(v[:1], float("nan")) if r is None else r[1][k] for r in rows])
            for k, v in position.items()
        }
        return values, grads


class FunctionPotential(Potential):
    """A potential that the user wrote, batched over chains.

    :param fn: from a dict of ``(chains, ...)`` tensors to ``U`` of shape ``(chains,)`` in nats.  Entry ``c`` may depend
        on chain ``c`` alone, or gradients of chains mix.
    """

    def __init__(self, fn: Callable[[Position], Tensor]) -> None:
        self.fn = fn
        self.transforms = {}

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        with torch.enable_grad():
            leaves = {k: v.detach().requires_grad_() for k, v in position.items()}
            values = self._checked(self.fn(leaves), position)
            if not values.requires_grad:
                raise ValueError("potential_fn gave a value that does not depend differentiably on its argument")
            grads = torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True)
        filled = (torch.zeros_like(v) if g is None else g for g, v in zip(grads, leaves.values(), strict=True))
        return values.detach(), dict(zip(position, filled, strict=True))

    @staticmethod
    def _checked(values: Any, position: Position) -> Tensor:
        num_chains = next(iter(position.values())).shape[0]
        if not isinstance(values, Tensor) or values.shape != (num_chains,):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"potential_fn must give one value a chain, shape ({num_chains},), got {got}; it is called with "
                f"{ {k: tuple(v.shape) for k, v in position.items()} }, chains leading"
            )
        return values

    def value(self, position: Position) -> Tensor:
        with torch.no_grad():
            return self._checked(self.fn(position), position)

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        first = next(iter(position.values()))
        kind = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        return position, first.new_zeros(first.shape[0], dtype=kind)


class ModelPotential(Potential):
    r"""The potential of a Pyro model given its data.

    .. math:: U(u) = -\log p(x, z(u)) - \log \left| \frac{\partial z}{\partial u} \right|

    with :math:`z(u)` the ``biject_to`` of each latent's support.  All chains are evaluated by one ``torch.func.vmap``
    of the model, and from the twentieth evaluation on by the graph of tensor operations that this does: the same
    numbers without Pyro's and vmap's Python.  A model that cannot be vectorised (Python control flow on values) runs
    chain after chain, and a warning says so.

    :param model: a Pyro model.  Its parameters are constants here.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param compile: have inductor compile the graph, which takes seconds and pays in long runs.
    :raises ValueError: for a discrete latent, a subsampled plate, no latent at all, or sites that change between runs;
        the message names the site.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], compile: bool = False
    ) -> None:
        self.model, self.args, self.kwargs, self.compile = model, args, dict(kwargs), compile
        self.latents: dict[str, Latent] = describe_latents(model, args, self.kwargs)
        self.moving = [name for name, latent in self.latents.items() if latent.moving_support]
        self._vectorize = True
        self._checked = False
        self._batched = torch.func.vmap(torch.func.grad_and_value(self._single))
        # A run has one number of chains; single chains come besides, where a factorisation failed.
        self._graphs: dict[int, Callable[[Position], tuple[Position, Tensor]]] = {}
        self._calls: dict[int, int] = {}
        self._batched_constrain = torch.func.vmap(self._constrain_by_model)

    @property
    def transforms(self) -> dict[str, Transform]:  # type: ignore[override]
        if self.moving:
            raise ValueError(
                f"the support of {self.moving} depends on other latents, so no fixed transform exists; "
                "pyro.infer.MCMC cannot run this model, pyro_dgm.infer.mcmc.MCMC can"
            )
        return {name: latent.transform.inv for name, latent in self.latents.items()}

    def _single(self, position: Position) -> Tensor:
        with LogJoint(self.latents, position) as joint:
            self.model(*self.args, **self.kwargs)
        joint.check_complete()
        return -(joint.log_prob + joint.log_det)

    def _constrain_by_model(self, position: Position) -> tuple[Position, Tensor]:
        with LogJoint(self.latents, position) as joint:
            self.model(*self.args, **self.kwargs)
        zero = next(iter(position.values())).new_zeros(())
        return joint.values, joint.log_det + zero

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        # Outer no_grad: parameters of the model are constants; torch.func.grad is not affected by it.
        with torch.no_grad(), pyro.validation_enabled(False):
            if self._vectorize:
                if self._checked:
                    grads, values = self._graph_or_model(position)
                    return values, grads
                try:
                    grads, values = self._batched(position)
                except torch.linalg.LinAlgError:
                    raise
                except Exception as error:
                    return self._fall_back(position, error)
                self._checked = True
                return values, grads
            return self._loop(position)

    def _graph_or_model(self, position: Position) -> tuple[Position, Tensor]:
        num_chains = next(iter(position.values())).shape[0]
        graph = self._graphs.get(num_chains)
        if graph is not None:
            return graph(position)
        self._calls[num_chains] = self._calls.get(num_chains, 0) + 1
        if self._calls[num_chains] < GRAPH_AFTER:
            return self._batched(position)
        self._graphs[num_chains] = operations_of(self._batched, position, self.compile)
        return self._graphs[num_chains](position)

    def capture(self, position: Position) -> None:
        """Put the graph for this number of chains in the model's place now.

        :raises CannotCapture: (:class:`pyro_dgm.infer.static_graph.CannotCapture`) with the reason.
        """
        self(position)  # in its own words, where the model itself has a fault
        if not self._vectorize:
            raise CannotCapture("the model cannot be vectorised over chains")
        num_chains = next(iter(position.values())).shape[0]
        with torch.no_grad(), pyro.validation_enabled(False):
            self._graphs[num_chains] = potential_graph(self._batched, position, self.compile)

    def _fall_back(self, position: Position, error: Exception) -> tuple[Tensor, Position]:
        if "random" in str(error) and "vmap" in str(error):
            raise ValueError(
                "the model draws random numbers outside its latent sites (dropout in training mode, torch.randn, or "
                "sites hidden by poutine.block), so it has no fixed density; call .eval(), or make the draw a site"
            ) from error
        result = self._loop(position)  # an error of the model itself is raised here, without vmap in the way
        self._vectorize = False
        reason = str(error).strip().split("\n")[0][:200]
        warnings.warn(
            f"the model cannot be vectorised over chains and runs chain by chain, which is slower: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return result

    def _loop(self, position: Position) -> tuple[Tensor, Position]:
        single = torch.func.grad_and_value(self._single)
        num_chains = next(iter(position.values())).shape[0]
        rows = [single({k: v[c] for k, v in position.items()}) for c in range(num_chains)]
        return torch.stack([u for _, u in rows]), {k: torch.stack([g[k] for g, _ in rows]) for k in position}

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        with torch.no_grad(), pyro.validation_enabled(False):
            if self.moving:
                return self._constrain_moving(position)
            first = next(iter(position.values()))
            values: Position = {}
            log_det = first.new_zeros(first.shape[0])
            for name, u in position.items():
                transform = self.latents[name].transform
                values[name] = transform(u)
                if transform is not identity_transform:
                    ladj = transform.log_abs_det_jacobian(u, values[name])
                    log_det = log_det + ladj.reshape(len(u), -1).sum(-1)
            return values, log_det

    def _constrain_moving(self, position: Position) -> tuple[Position, Tensor]:
        if self._vectorize:
            return self._batched_constrain(position)
        rows = [
            self._constrain_by_model({k: v[c] for k, v in position.items()})
            for c in range(len(next(iter(position.values()))))
        ]
        return {k: torch.stack([r[0][k] for r in rows]) for k in position}, torch.stack([r[1] for r in rows])

    def explain(self, position: Position) -> str:
        """Sites whose log-probability, or log-Jacobian, is not finite for the first of these chains."""
        one = {k: v[0] for k, v in position.items()}
        with torch.no_grad(), pyro.validation_enabled(False), LogJoint(self.latents, one, by_site=True) as joint:
            try:
                self.model(*self.args, **self.kwargs)
            except torch.linalg.LinAlgError as error:
                return f"a matrix factorisation fails in the model: {error}"
        bad = [f"{name!r} ({value:g})" for name, value in joint.by_site.items() if not _finite(value)]
        if bad:
            return "non-finite log-probability at " + ", ".join(bad)
        _, grads = self({k: v[:1] for k, v in position.items()})
        bad = [repr(k) for k, g in grads.items() if not bool(torch.isfinite(g).all())]
        return "the log-probability is finite but its gradient is not, with respect to " + ", ".join(bad)


def _finite(value: float) -> bool:
    return value - value == 0.0
