"""One optimiser or several: what :func:`pyro_dgm.fit` makes of its arguments ``optimizer`` and ``lr_scheduler``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.infer.objectives.phase import OWNERS
from pyro_dgm.programs.parameters import OBJECTIVE_PREFIX
from pyro_dgm.programs.roles import find_parameters

__all__ = [
    "Optimizers",
    "check_plateau",
    "clip_gradients",
    "from_mapping",
    "make_one",
    "make_optimizer",
    "make_scheduler",
    "split_by_role",
    "step_scheduler",
]

Optimizer = torch.optim.Optimizer


class Optimizers:
    """Several optimisers, each over parameters of its own, that step together.

    It has of :class:`torch.optim.Optimizer` what a training loop asks for: :meth:`step`, :meth:`zero_grad`,
    :meth:`state_dict`, :meth:`load_state_dict` and :attr:`param_groups`.

    :param optimizers: the optimisers by name.
    :raises ValueError: if there are none, or two have a parameter in common.

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.train.optimizers import Optimizers
        >>> a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> both = Optimizers({"model": torch.optim.SGD([a], lr=1.0), "guide": torch.optim.SGD([b], lr=0.1)})
        >>> (a + b).backward()
        >>> both.step()
        >>> a.item(), round(b.item(), 6)
        (0.0, 0.9)
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        if not optimizers:
            raise ValueError("Optimizers needs at least one optimizer")
        self.optimizers = dict(optimizers)
        owners: dict[int, str] = {}
        for name, optimizer in self.optimizers.items():
            for p in _parameters_of(optimizer):
                if owners.setdefault(id(p), name) != name:
                    raise ValueError(f"the optimizers {owners[id(p)]!r} and {name!r} have a parameter in common")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimisers, one optimiser's after another's."""
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def step(self) -> None:
        """Step each."""
        for optimizer in self.optimizers.values():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of each, by name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`.

        :raises ValueError: if it is of other optimisers.
        """
        if state.keys() != self.optimizers.keys():
            raise ValueError(f"the state is of the optimizers {sorted(state)}, these are {sorted(self.optimizers)}")
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])

    def __repr__(self) -> str:
        return f"Optimizers({', '.join(f'{name}={type(o).__name__}' for name, o in self.optimizers.items())})"


class Schedulers:
    """The learning rates' schedulers of several optimisers, by the same names."""

    def __init__(self, schedulers: Mapping[str, Any]) -> None:
        self.schedulers = dict(schedulers)

    def state_dict(self) -> dict[str, Any]:
        """The state of each, by name."""
        return {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(state[name])


def _parameters_of(optimizer: Optimizer | Optimizers) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def clip_gradients(optimizer: Optimizer | Optimizers, max_norm: float, norm: Tensor) -> None:
    """Clip the norm of the gradient; that of each optimiser by itself, for a discriminator's is no program's.

    :param norm: the norm over all parameters, which is the one that a single optimiser is clipped by.
    """
    if isinstance(optimizer, Optimizers):
        for one in optimizer.optimizers.values():
            torch.nn.utils.clip_grad_norm_(_parameters_of(one), max_norm)
    else:
        torch.nn.utils.clip_grads_with_norm_(_parameters_of(optimizer), max_norm, norm)


# Making them


def make_optimizer(
    optimizer: Any, leaves: dict[str, Tensor], roles: Callable[[], dict[str, str]]
) -> Optimizer | Optimizers:
    """The optimiser that an argument stands for.

    :param leaves: what is trained, by name, in the optimiser's order.
    :param roles: gives for each leaf whose it is, one of :data:`OWNERS`, or ``""``; called for a mapping only.
    """
    if isinstance(optimizer, Mapping):
        return from_mapping(optimizer, leaves, roles())
    if isinstance(optimizer, Optimizer):
        if not {id(p) for p in _parameters_of(optimizer)} & {id(p) for p in leaves.values()}:
            raise ValueError("optimizer holds none of the program's parameters")
        return _checked(optimizer)
    if not (optimizer is None or callable(optimizer)) or isinstance(optimizer, pyro.optim.PyroOptim):
        _refuse("optimizer", optimizer, "None, a callable, a mapping of them or a torch.optim.Optimizer")
    return make_one("optimizer", optimizer, list(leaves.values()))


def from_mapping(optimizers: Mapping[str, Any], leaves: dict[str, Tensor], roles: dict[str, str]) -> Optimizers:
    """An optimiser for each role that a mapping has a key for."""
    unknown = [key for key in optimizers if key not in OWNERS]
    if unknown:
        raise ValueError(f"optimizer has the key {unknown[0]!r}: a mapping has {', '.join(map(repr, OWNERS))}")
    made: dict[str, Optimizer] = {}
    for role in OWNERS:
        mine = {name: leaf for name, leaf in leaves.items() if roles[name] == role}
        if not mine:
            continue
        if role not in optimizers:
            names = ", ".join(list(mine)[:5])
            if role == "shared":
                raise ValueError(
                    f"both model and guide use {names}: optimizer={{'model': ..., 'guide': ...}} needs a key 'shared' "
                    "for parameters of both"
                )
            raise ValueError(f"optimizer has no key {role!r}, whose parameters are {names} (None is the default)")
        make, argument = optimizers[role], f"optimizer[{role!r}]"
        if isinstance(make, (Optimizer, pyro.optim.PyroOptim)) or not (make is None or callable(make)):
            _refuse(argument, make, "None or a callable of a list of parameters")
        made[role] = make_one(argument, make, list(mine.values()))
    idle = [name for name in leaves if not roles[name]]
    if idle:
        warnings.warn(
            f"no optimizer trains {', '.join(idle[:5])}: neither model nor guide uses them on the first batch",
            stacklevel=4,
        )
    if not made:
        raise ValueError("optimizer: neither model nor guide uses any of the program's parameters")
    return Optimizers(made)


def make_one(argument: str, make: Any, parameters: list[Tensor]) -> Optimizer:
    """An optimiser over some parameters, from ``None`` or a callable."""
    if make is None:
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        return torch.optim.Adam(parameters, lr=1e-3, fused=fused or None)
    made = make(parameters)
    if not isinstance(made, Optimizer):
        raise TypeError(f"{argument}(parameters) must give a torch.optim.Optimizer, got {type(made).__name__}")
    return _checked(made)


def _checked(optimizer: Optimizer) -> Optimizer:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer LBFGS needs to evaluate the loss many times a step, which a stochastic bound does not allow"
        )
    return optimizer


def _refuse(argument: str, given: Any, wanted: str) -> None:
    if isinstance(given, pyro.optim.PyroOptim):
        raise TypeError(
            f"{argument} must be of torch.optim, got a pyro.optim wrapper: functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    raise TypeError(f"{argument} must be {wanted}, got {type(given).__name__}")


def split_by_role(program: Any, leaves: dict[str, Tensor], args: tuple, kwargs: dict[str, Any]) -> dict[str, str]:
    """Whose each leaf is: ``"model"``, ``"guide"``, ``"shared"`` by both, ``"objective"``, or ``""`` if nobody's.

    What the program depends on is asked of autograd on one batch
    (:func:`~pyro_dgm.programs.roles.find_parameters`); the rest goes by the prefix of its name.
    """
    found = find_parameters(program, args, kwargs)
    names = {id(tensor): name for name, tensor in found.tensors.items()}
    roles = {}
    for name, leaf in leaves.items():
        key = names.get(id(leaf))
        sides = [side for side in ("model", "guide") if key is not None and key in getattr(found, side)]
        if name.startswith(OBJECTIVE_PREFIX):
            roles[name] = "objective"
        elif sides:
            roles[name] = "shared" if len(sides) == 2 else sides[0]
        else:
            prefix = name.partition(".")[0]
            roles[name] = prefix if prefix in ("model", "guide") else ""
    return roles


# Learning rates


def make_scheduler(make: Any, optimizer: Optimizer | Optimizers, interval: str) -> Any:
    """The scheduler of an optimiser; of several, one each (a callable serves all, a mapping has its keys)."""
    if make is None:
        return None
    if not isinstance(optimizer, Optimizers):
        if isinstance(make, Mapping):
            raise TypeError("lr_scheduler is a mapping, which needs optimizer to be one")
        return _scheduler(make, optimizer, interval)
    by_name = make if isinstance(make, Mapping) else dict.fromkeys(optimizer.optimizers, make)
    unknown = [key for key in by_name if key not in (*OWNERS, *optimizer.optimizers)]
    if unknown:
        raise ValueError(f"lr_scheduler has the key {unknown[0]!r}: a mapping has {', '.join(map(repr, OWNERS))}")
    made = {
        name: _scheduler(by_name[name], one, interval)
        for name, one in optimizer.optimizers.items()
        if by_name.get(name) is not None
    }
    return Schedulers(made) if made else None


def _scheduler(make: Any, optimizer: Optimizer, interval: str) -> Any:
    scheduler = make(optimizer) if isinstance(make, type) or not hasattr(make, "step") else make
    if not hasattr(scheduler, "step"):
        raise TypeError(f"lr_scheduler(optimizer) must give a scheduler with step(), got {type(scheduler).__name__}")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("lr_scheduler is bound to another optimizer; give a callable, or the optimizer too")
    if interval == "step" and isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau needs an epoch's bound: lr_scheduler_interval='epoch'")
    return scheduler


def check_plateau(scheduler: Any, metric: Metric) -> None:
    """Refuse to wait for a plateau of a metric of which neither way is better.

    :raises ValueError: naming it.
    """
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    if metric.better is None and any(isinstance(one, plateau) for one in _each(scheduler)):
        raise ValueError(
            f"ReduceLROnPlateau waits for a better value, but that of each epoch is the {metric}: take another "
            "lr_scheduler, or give validation data with a validation_objective that has a better direction"
        )


def step_scheduler(scheduler: Any, gain: float) -> None:
    """Step what :func:`make_scheduler` made; one that waits for a plateau is given the value in its own sense.

    :param gain: the monitored value as a number of which more is better.
    """
    for one in _each(scheduler):
        if isinstance(one, torch.optim.lr_scheduler.ReduceLROnPlateau):
            one.step(gain if one.mode == "max" else -gain)
        elif one is not None:
            one.step()


def _each(scheduler: Any) -> Iterable[Any]:
    return scheduler.schedulers.values() if isinstance(scheduler, Schedulers) else [scheduler]
