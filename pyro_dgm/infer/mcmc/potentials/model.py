"""From a Pyro model and its data to a potential over chains, ``U`` and its gradient, in unconstrained space."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from torch.distributions import Transform, identity_transform

from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.log_joint import Latent, LogJoint
from pyro_dgm.infer.mcmc.potentials.sites import describe_latents
from pyro_dgm.infer.mcmc.potentials.vectorized import chain_by_chain, vectorizable
from pyro_dgm.programs.site_checks import invalid_site

__all__ = ["ModelPotential"]

logger = logging.getLogger("pyro_dgm.infer.mcmc")


class ModelPotential(Potential):
    r"""The potential of a Pyro model given its data.

    .. math:: U(u) = -\log p(x, z(u)) - \log \left| \frac{\partial z}{\partial u} \right|

    with :math:`z(u)` the ``biject_to`` of each latent's support.  All chains are evaluated by one ``torch.func.vmap``
    of the model, and from the twentieth evaluation on by the graph of tensor operations that this does: the same
    numbers without Pyro's and vmap's Python.  A model that cannot be vectorised (Python control flow on values) runs
    chain after chain, and a warning says so.  Discrete latents of finitely many values are summed out, marked for it or
    not (:class:`~pyro_dgm.infer.mcmc.potentials.marginal.Marginalised`), and are not among the draws.

    :param model: a Pyro model.  Its parameters are constants here.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param compile: have inductor compile the graph, which takes seconds and pays in long runs.
    :param transforms: by latent, from constrained to unconstrained space, in place of the inverse of ``biject_to``.
    :param max_plate_nesting: dimensions that plates may take; found by itself.
    :raises ValueError: for a discrete latent that cannot be enumerated, a subsampled plate, no continuous latent, or
        sites that change between runs; the message names the site.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        compile: bool = False,
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.evaluator.compile = compile
        self.sites = describe_latents(model, args, self.kwargs, transforms, max_plate_nesting)
        self.latents: Mapping[str, Latent] = self.sites.latents
        self.moving = [name for name, latent in self.latents.items() if latent.moving_support]
        self._vectorize = True
        self._checked = self._recorded = False
        self._batched = torch.func.vmap(torch.func.grad_and_value(self._single))
        self._batched_value = torch.func.vmap(self._single)
        self._batched_constrain = torch.func.vmap(self._constrain_by_model)

    @property
    def transforms(self) -> dict[str, Transform]:  # type: ignore[override]
        if self.moving:
            raise ValueError(
                f"the support of {self.moving} depends on other latents, so no fixed transform exists; "
                "pyro.infer.MCMC cannot run this model, pyro_dgm.infer.mcmc.MCMC can"
            )
        return {name: latent.transform.inv for name, latent in self.latents.items()}

    def joint(self, position: Position, model: Callable[..., Any] | None = None, by_site: bool = False) -> LogJoint:
        """The log-joint density at one position, without a chain dimension, of this model or of one like it."""
        handler = LogJoint(self.sites, position, by_site)
        return handler.run(self.model if model is None else model, self.args, self.kwargs)

    def _single(self, position: Position) -> Tensor:
        joint = self.joint(position)
        return -(joint.log_prob + joint.log_det)

    def _constrain_by_model(self, position: Position) -> tuple[Position, Tensor]:
        joint = self.joint(position)
        zero = next(iter(position.values())).new_zeros(())
        return joint.values, joint.log_det + zero

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        # Outer no_grad: parameters of the model are constants; torch.func.grad is not affected by it.
        with torch.no_grad(), pyro.validation_enabled(False):
            if self._vectorize:
                if self._checked:
                    grads, values = self._batched(position)
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

    @property
    def can_be_recorded(self) -> bool:
        return self._vectorize

    def _value(self, position: Position) -> Tensor:
        if not (self._vectorize and self._checked):
            return self._evaluate(position)[0]
        with torch.no_grad(), pyro.validation_enabled(False):
            return self._batched_value(position)

    def capture(self, position: Position) -> None:
        """Put the graph for this number of chains in the model's place now.

        :raises CannotCapture: (:class:`pyro_dgm.capture.static_graph.CannotCapture`) with the reason.
        """
        self.evaluator.record("gradient", position)
        if self.evaluator.compile:
            self.evaluator.compile_graph("gradient", position)

    def _fall_back(self, position: Position, error: Exception) -> tuple[Tensor, Position]:
        if "random" in str(error) and "vmap" in str(error):
            raise ValueError(
                "the model draws random numbers outside its latent sites (dropout in training mode, torch.randn, or "
                "sites hidden by poutine.block), so it has no fixed density; call .eval(), or make the draw a site"
            ) from error
        result = self._loop(position)  # an error of the model itself is raised here, without vmap in the way
        if self._vectorize_recording(position, result):
            return result
        self._vectorize = False
        reason = str(error).strip().split("\n")[0][:200]
        warnings.warn(
            f"the model cannot be vectorised over chains and runs chain by chain, which is slower: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return result

    def _vectorize_recording(self, position: Position, expected: tuple[Tensor, Position]) -> bool:
        """Have vmap take one chain's operations, recorded and without writes in place, instead of the model.

        :param expected: value and gradient at ``position``, which the recording is compared with.
        :returns: whether it is the model.
        """
        try:
            single, self._batched = vectorizable(self._single, expected, position)
        except CannotCapture as reason:
            logger.info("the model runs chain by chain: %s", reason)
            return False
        self._batched_value = torch.func.vmap(single)
        self._checked = self._recorded = True
        return True

    def _loop(self, position: Position) -> tuple[Tensor, Position]:
        return chain_by_chain(self._single, position)

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
        if self._vectorize and not self._recorded:
            return self._batched_constrain(position)
        rows = [
            self._constrain_by_model({k: v[c] for k, v in position.items()})
            for c in range(len(next(iter(position.values()))))
        ]
        return {k: torch.stack([r[0][k] for r in rows]) for k in position}, torch.stack([r[1] for r in rows])

    def check_valid(self, position: Position) -> None:
        """Run the model with validation on where chains begin, and refuse it if none of three is valid.

        :raises ValueError: naming the site.
        """
        if not is_validation_enabled():
            return
        values, _ = self.constrain({k: v[:3] for k, v in position.items()})
        why = ""
        for c in range(len(next(iter(values.values())))):
            why = invalid_site(self.model, self.args, self.kwargs, {k: v[c] for k, v in values.items()})
            if not why:
                return
        raise ValueError(f"the model's density is finite where chains begin, but the model is not valid there, {why}")

    def explain(self, position: Position) -> str:
        """Sites whose log-probability, or log-Jacobian, is not finite for the first of these chains."""
        one = {k: v[0] for k, v in position.items()}
        with torch.no_grad(), pyro.validation_enabled(False):
            try:
                joint = self.joint(one, by_site=True)
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
