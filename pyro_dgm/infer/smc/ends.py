"""The two ends of an annealing path: a distribution that can be drawn from, and a density known up to a constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_dgm.capture.unvalidated import unvalidated
from pyro_dgm.infer.mcmc.potentials.base import Position

__all__ = ["Ends"]

#: name of the position of a single distribution
SINGLE = "x"


class Ends:
    r"""Start and target of a path, in unconstrained coordinates.

    :param initial: a normalised distribution with ``sample`` and ``log_prob``, without batch dimensions; or a dict of
        them by name, independent.
    :param target: from values, ``(chains, *event_shape)``, or a dict of them, to :math:`\log f_1`, ``(chains,)``, nats;
        or a distribution (its ``log_prob``, normalised or not).
    :raises TypeError: for other kinds of object.
    :raises ValueError: for batch dimensions.
    """

    def __init__(self, initial: Any, target: Any) -> None:
        self.single = not isinstance(initial, Mapping)
        given = {SINGLE: initial} if self.single else dict(initial)
        #: without validation: a trajectory that runs off is rejected, and is no error of the user's
        self.initial: dict[str, Any] = {k: unvalidated(d) for k, d in given.items()}
        if not self.initial:
            raise ValueError("initial must hold at least one distribution, got an empty dict")
        for name, d in self.initial.items():
            which = "initial" if self.single else f"initial[{name!r}]"
            if not (callable(getattr(d, "sample", None)) and callable(getattr(d, "log_prob", None))):
                raise TypeError(f"{which} must be a distribution with sample and log_prob, got {type(d).__name__}")
            if getattr(d, "normalized", True) is False:
                raise ValueError(f"{which} must be normalised, {type(d).__name__} is not")
            if tuple(getattr(d, "batch_shape", ())):
                raise ValueError(
                    f"{which} must have no batch dimensions, got {tuple(d.batch_shape)}: .to_event() makes them events"
                )
        if callable(getattr(target, "log_prob", None)):
            target = unvalidated(target).log_prob
        if not callable(target):
            raise TypeError(f"target must be a function of values or a distribution, got {type(target).__name__}")
        self.target: Callable[[Any], Tensor] = target

    def values(self, samples: Any) -> Any:
        """A dict of values as the target takes it."""
        return samples[SINGLE] if self.single else samples

    def named(self, values: Any) -> Position:
        """Undo :meth:`values`."""
        if self.single:
            return {SINGLE: torch.as_tensor(values)}
        if not isinstance(values, Mapping) or set(values) != set(self.initial):
            raise ValueError(f"samples must be a dict with {sorted(self.initial)}")
        return dict(values)

    def draw(self, num_chains: int) -> Position:
        """Values drawn from the start, ``(num_chains, *event_shape)`` each."""
        with torch.no_grad():
            return {k: d.sample(torch.Size([num_chains])) for k, d in self.initial.items()}

    def log_initial(self, values: Position) -> Tensor:
        """Normalised log-density of the start."""
        return sum(d.log_prob(values[k]) for k, d in self.initial.items())

    def log_target(self, values: Position) -> Tensor:
        """:math:`\\log f_1`.

        :raises ValueError: if it is not one number a chain.
        """
        log_f = self.target(self.values(values))
        chains = next(iter(values.values())).shape[0]
        if not isinstance(log_f, Tensor) or log_f.shape != (chains,):
            got = tuple(log_f.shape) if isinstance(log_f, Tensor) else type(log_f).__name__
            raise ValueError(f"target must give one log-density a chain, shape ({chains},), got {got}")
        return log_f

    # Unconstrained coordinates

    def unconstrain(self, values: Position) -> Position:
        """Values to unconstrained coordinates."""
        return {k: self._bijection(k).inv(v) for k, v in values.items()}

    def constrain(self, position: Position) -> Position:
        """Unconstrained coordinates to values."""
        return {k: self._bijection(k)(u) for k, u in position.items()}

    def both(self, position: Position) -> tuple[Tensor, Tensor]:
        """The potentials of start and target in unconstrained coordinates."""
        values, log_det = {}, next(iter(position.values())).new_zeros(())
        for k, u in position.items():
            transform = self._bijection(k)
            values[k] = transform(u)
            log_det = log_det + transform.log_abs_det_jacobian(u, values[k]).reshape(len(u), -1).sum(-1)
        return -self.log_initial(values) - log_det, -self.log_target(values) - log_det

    def _bijection(self, name: str) -> Any:
        support = getattr(self.initial[name], "support", torch.distributions.constraints.real)
        if support.is_discrete:
            raise ValueError("initial is discrete, which a kernel cannot move: give transition= instead")
        return biject_to(support)
