"""Discrete states as the corners of a space of real numbers, where a potential has a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Bernoulli, OneHotCategorical, constraints

from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.wrapped import WrappedPotential
from pyro_dgm.programs.base_of import base_of

__all__ = ["RelaxedPotential", "RelaxedSites"]


class RelaxedPotential(WrappedPotential):
    """A potential of real arguments, seen at discrete states.

    :param base: potential of 0/1 or one-hot real tensors.
    :param num_categories: by name or for all; ``None`` is binary.
    :param dtype: real type for integer states.
    """

    discrete = True

    def __init__(
        self, base: Potential, num_categories: int | Mapping[str, int | None] | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__(base)
        self.num_categories = num_categories
        self.dtype = torch.get_default_dtype() if dtype is None else dtype

    def categories(self, name: str) -> int | None:
        """Number of categories of a state, ``None`` if it is binary."""
        given = self.num_categories
        return given.get(name) if isinstance(given, Mapping) else given

    def check(self, position: Position) -> None:
        """:raises ValueError: for a state that is not of its kind, named."""
        for name, v in position.items():
            k = self.categories(name)
            if k is None:
                if not bool(((v == 0) | (v == 1)).all()):
                    raise ValueError(
                        f"state {name!r} must be binary, zeros and ones, got values from {v.min()} to {v.max()}; "
                        "categories need num_categories"
                    )
            elif v.is_floating_point():
                one_hot = v.dim() > 1 and v.shape[-1] == k and bool(((v == 0) | (v == 1)).all())
                if not one_hot or not bool((v.sum(-1) == 1).all()):
                    raise ValueError(
                        f"state {name!r} must be one-hot in a last dimension of num_categories = {k}, or integers, "
                        f"got a real tensor of shape {tuple(v.shape)}"
                    )
            elif v.dtype is torch.bool or not bool(((v >= 0) & (v < k)).all()):
                raise ValueError(f"state {name!r} must be integers from 0 to num_categories - 1 = {k - 1}, got {v}")

    def relax(self, position: Position) -> Position:
        """The same state in real numbers: 0/1, or one-hot."""
        out = {}
        for name, v in position.items():
            k = self.categories(name)
            if v.is_floating_point():
                out[name] = v
            elif k is None:
                out[name] = v.to(self.dtype)
            else:
                out[name] = (v.unsqueeze(-1) == torch.arange(k, device=v.device)).to(self.dtype)
        return out

    def restore(self, relaxed: Position, like: Position) -> Position:
        """Back from :meth:`relax`, to the types of ``like``."""
        out = {}
        for name, v in like.items():
            if v.is_floating_point():
                out[name] = relaxed[name]
            elif self.categories(name) is None:
                out[name] = relaxed[name].to(v.dtype)
            else:
                out[name] = relaxed[name].argmax(-1).to(v.dtype)
        return out

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        return self.base(self.relax(position))

    def value(self, position: Position) -> Tensor:
        return self.base.value(self.relax(position))

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        first = next(iter(position.values()))
        dtype = first.dtype if first.is_floating_point() else self.dtype
        return position, torch.zeros(first.shape[0], dtype=dtype, device=first.device)


class RelaxedSites:
    """A Pyro model whose discrete latents look continuous, so that their joint density can be differentiated.

    :param model: the model; its latents must be ``Bernoulli`` or ``OneHotCategorical``.
    :ivar num_categories: of each latent that has been met; ``None`` is binary.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.num_categories: dict[str, int | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Relax(self.num_categories):
            return self.model(*args, **kwargs)


class _Relax(Messenger):
    def __init__(self, found: dict[str, int | None]) -> None:
        super().__init__()
        self.found = found

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        inner = base_of(msg["fn"])
        if isinstance(inner, Bernoulli):
            self.found[msg["name"]] = None
        elif isinstance(inner, OneHotCategorical):
            self.found[msg["name"]] = inner.event_shape[-1]
        else:
            raise ValueError(
                f"latent site {msg['name']!r} is {type(inner).__name__}; GibbsWithGradients samples Bernoulli and "
                "OneHotCategorical latents (a Categorical can be written as the latter)"
            )
        msg["fn"] = _RealArguments(msg["fn"], inner)


class _RealArguments(TorchDistribution):
    """A discrete law whose log-probability is continued to real arguments, linearly."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, law: Any, inner: Any) -> None:
        self.law, self.inner = law, inner
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> _RealArguments:
        return _RealArguments(self.law.expand(batch_shape), self.inner)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.law.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if isinstance(self.inner, Bernoulli):
            return self.law.log_prob(value)
        log_prob = (value * self.inner.logits).sum(-1)
        return log_prob.sum(tuple(range(-(len(self.event_shape) - 1), 0))) if len(self.event_shape) > 1 else log_prob
