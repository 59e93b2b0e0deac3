"""The potential of a model whose data are seen a mini-batch at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.evaluator import Evaluator
from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential
from pyro_dgm.infer.mcmc.potentials.vectorized import chain_by_chain, vectorizable
from pyro_dgm.infer.mcmc.potentials.wrapped import WrappedPotential

__all__ = ["FunctionMinibatches", "MinibatchPotential", "ModelMinibatches"]


class MinibatchPotential(WrappedPotential):
    """A potential estimated from a mini-batch that is drawn anew for every chain and evaluation.

    :ivar plates: size of the data and of a mini-batch, by the plate's name.
    """

    plates: dict[str, tuple[int, int]]

    def indices(self, num_chains: int, generator: torch.Generator | None, device: torch.device) -> Position:
        """Which data each chain sees, ``(chains, batch)`` for each plate: independently, with replacement."""
        return {
            name: torch.randint(size, (num_chains, batch), generator=generator, device=device)
            for name, (size, batch) in self.plates.items()
        }

    @abstractmethod
    def on(self, position: Position, indices: Mapping[str, Tensor]) -> tuple[Tensor, Position]:
        """The estimate from these data, and its gradient."""

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        # By itself, for initial values, the mini-batch is of the global generator's making.
        first = next(iter(position.values()))
        return self.on(position, self.indices(first.shape[0], None, first.device))


class FunctionMinibatches(MinibatchPotential):
    """A potential of positions and indices that the user wrote.

    :param fn: from a dict of ``(chains, ...)`` and indices ``(chains, batch)`` to ``(chains,)``: an unbiased estimate
        of ``U``, the likelihood of the mini-batch scaled up to all data.
    """

    def __init__(self, fn: Callable[..., Tensor], num_data: int, batch_size: int) -> None:
        super().__init__(FunctionPotential(fn))
        self.fn = fn
        self.plates = {"data": (num_data, batch_size)}

    def on(self, position: Position, indices: Mapping[str, Tensor]) -> tuple[Tensor, Position]:
        return FunctionPotential(lambda u: self.fn(u, indices["data"]), over_chains=True)._evaluate(position)


class ModelMinibatches(MinibatchPotential):
    """The potential of a Pyro model with subsampled plates, whose indices are given instead of drawn by the plate.

    :param options: of :class:`ModelPotential`.
    :raises ValueError: for a latent inside a subsampled plate: other data would have other latents every time.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any
    ) -> None:
        self.plates = _subsampled(model, args, kwargs)
        # Plates that choose for themselves are hidden from it: it would refuse them.
        base = ModelPotential(poutine.block(model, hide_fn=_chooses), args, kwargs, **options)
        self._given = _GivenData(model, args, kwargs, base, list(self.plates))
        super().__init__(base)
        if self.plates:
            self.evaluator = self._given.evaluator

    @property
    def latents(self) -> Any:
        """The model's latents."""
        assert isinstance(self.base, ModelPotential)
        return self.base.latents

    def on(self, position: Position, indices: Mapping[str, Tensor]) -> tuple[Tensor, Position]:
        return self._given({**position, **{f"{INDICES}{k}": indices[k] for k in self.plates}})

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        return super()._evaluate(position) if self.plates else self.base(position)


#: what the names of indices begin with where they stand beside latents
INDICES = "indices of "


class _GivenData(Potential):
    """A model's potential as a function of latents and of indices together; the gradient is by the latents."""

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        whole: ModelPotential,
        plates: Sequence[str],
    ) -> None:
        self.evaluator = Evaluator(
            self._evaluate, self._value, lambda: True, lambda u: [k for k in u if not k.startswith(INDICES)]
        )
        self.model, self.args, self.kwargs, self.whole, self.plates = model, args, dict(kwargs), whole, plates
        self._batched = torch.func.vmap(torch.func.grad_and_value(self._single))
        self._checked = False

    def _single(self, position: Position, indices: Position) -> Tensor:
        with _Given(indices):
            joint = self.whole.joint(position, self.model)
        return -(joint.log_prob + joint.log_det)

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        latents = {k: v for k, v in position.items() if not k.startswith(INDICES)}
        indices = {k: position[f"{INDICES}{k}"] for k in self.plates}
        with torch.no_grad(), pyro.validation_enabled(False):
            if self._checked:
                gradient, value = self._batched(latents, indices)
                return value, gradient
            try:
                gradient, value = self._batched(latents, indices)
            except torch.linalg.LinAlgError:
                raise
            except Exception as error:
                value, gradient = chain_by_chain(self._single, latents, indices)
                try:
                    _, self._batched = vectorizable(self._single, (value, gradient), latents, indices)
                except CannotCapture as reason:
                    raise error from reason
        self._checked = True
        return value, gradient

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        return self.whole.constrain(position)


def _subsampled(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """Size and mini-batch of each plate that covers only part of its data."""
    with torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    plates = {}
    for name, site in trace.nodes.items():
        fn = site["fn"] if site["type"] == "sample" else None
        if isinstance(fn, _Subsample) and site["value"] is not None and len(site["value"]) < fn.size:
            plates[name] = (fn.size, len(site["value"]))
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or isinstance(site["fn"], _Subsample):
            continue
        inside = [f.name for f in site["cond_indep_stack"] if f.name in plates]
        support: Any = getattr(site["fn"], "support", None)
        if inside and not support.is_discrete:  # those are summed out, or refused by name
            raise ValueError(
                f"latent site {name!r} is inside the subsampled plate {inside[0]!r}: each mini-batch has other "
                "latents, so there is no chain of them; SGLD samples global latents alone"
            )
    return plates


class _Given(Messenger):
    """Give subsampled plates their indices."""

    def __init__(self, indices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.chosen = indices

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample) and msg["name"] in self.chosen:
            msg["value"], msg["done"] = self.chosen[msg["name"]], True


def _chooses(msg: Any) -> bool:
    return msg["type"] == "sample" and isinstance(msg["fn"], _Subsample)
