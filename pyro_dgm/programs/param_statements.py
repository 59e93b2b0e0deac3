"""Parameters of ``pyro.param`` statements in plain functions, kept by the program instead of Pyro's global store."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from torch import Tensor
from torch.distributions import transform_to

__all__ = ["ParamStatements", "WithParamStatements", "put_in_store", "take_out_of_store", "warn_of_other_parameters"]

Entry = tuple[Any, Any]


def put_in_store(values: Mapping[str, Entry]) -> None:
    """Put unconstrained leaves and their constraints in Pyro's store, by name."""
    store = pyro.get_param_store()
    for name, (leaf, constraint) in values.items():
        store._params[name], store._constraints[name] = leaf, constraint
        store._param_to_name[leaf] = name


def take_out_of_store(names: list[str]) -> dict[str, Entry]:
    """Take entries out of Pyro's store: leaves and their constraints, by name."""
    store = pyro.get_param_store()
    found = {name: (store._params[name], store._constraints[name]) for name in names}
    for name in names:
        # By hand: a parameter under two names (tied weights) makes the store's own deletion fail at the second.
        leaf = store._params.pop(name)
        store._constraints.pop(name)
        if store._param_to_name.get(leaf) == name:
            del store._param_to_name[leaf]
    return found


class _Scope:
    """What a scope needs to undo.  With slots: it is none of the values that a recorded graph depends on."""

    __slots__ = ("before", "depth", "hidden")

    def __init__(self) -> None:
        self.depth = 0
        self.before: set[str] = set()
        self.hidden: dict[str, Entry] = {}


#: those whose scope is open, outermost first
_open: list[ParamStatements] = []


class ParamStatements(torch.nn.Module):
    """The parameters that ``pyro.param`` statements of a program's plain functions have made.

    ``program.param_store`` of a :class:`~pyro_dgm.programs.Program` is one. It reads like Pyro's store:
    ``program.param_store["scale"]`` is the constrained value. As a module it lists the unconstrained leaves, so that
    ``program.parameters()`` and ``program.state_dict()`` hold them.

    Inside the scope (``with statements:``) Pyro's store holds these parameters. At its end they are out of the store,
    together with those that statements made meanwhile, and what they hid is back. A name that is in Pyro's store
    beforehand, and not here, is taken from there and stays there: it is what Pyro's ``SVI`` has trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constraints: dict[str, Any] = {}
        self._scope = _Scope()

    def __getitem__(self, name: str) -> Tensor:
        return transform_to(self._constraints[name])(self._parameters[name])

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def keys(self) -> Iterator[str]:
        """The names of the parameters."""
        return iter(self)

    def __enter__(self) -> ParamStatements:
        scope = self._scope
        if not scope.depth:
            store = pyro.get_param_store()
            # What programs have put there that this one runs within is theirs, and not Pyro's.
            theirs = {name for outer in _open for name in store._params if name not in outer._scope.before}
            scope.hidden = take_out_of_store([n for n in store._params if n in self._parameters or n in theirs])
            scope.before = set(store._params)
            _open.append(self)
            put_in_store({name: (leaf, self._constraints[name]) for name, leaf in self._parameters.items()})
        scope.depth += 1
        return self

    def __exit__(self, *error: Any) -> None:
        scope = self._scope
        scope.depth -= 1
        if not scope.depth:
            _open.remove(self)
            ours = [name for name in pyro.get_param_store()._params if name not in scope.before]
            for name, (leaf, constraint) in take_out_of_store(ours).items():
                # Not by register_parameter: leaves of Pyro's store are plain tensors, and names may have dots in them.
                self._parameters[name], self._constraints[name] = leaf, constraint
            put_in_store(scope.hidden)
            scope.hidden, scope.before = {}, set()

    def __deepcopy__(self, memo: dict[int, Any]) -> ParamStatements:
        twin = ParamStatements()
        memo[id(self)] = twin
        for name, leaf in self._parameters.items():
            # Through memo, so that a leaf which a copied module holds too stays one leaf.
            if id(leaf) not in memo:
                memo[id(leaf)] = leaf.detach().clone().requires_grad_(leaf.requires_grad)  # type: ignore[union-attr]
            twin._parameters[name], twin._constraints[name] = memo[id(leaf)], self._constraints[name]
        return twin.train(self.training)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {tuple(leaf.shape)}" for name, leaf in self._parameters.items() if leaf is not None)


#: the parameters of plain functions that a program has; none any more once this was said
_programs: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def warn_of_other_parameters(fn: Any) -> None:
    """Say once that a plain function runs with Pyro's store, where a program has trained parameters for it."""
    try:
        kept = _programs.get(fn)
    except TypeError:  # neither hashable nor weakly referable: of no program
        return
    statements = None if kept is None else kept()
    if statements is not None and any(True for _ in statements):
        del _programs[fn]
        name = getattr(fn, "__name__", repr(fn))
        warnings.warn(
            f"{name} is used with the parameters of Pyro's global store. A program made of it has its own in "
            "program.param_store: pass program.model and program.guide to use those",
            UserWarning,
            stacklevel=4,
        )


class WithParamStatements:
    """A plain function whose ``pyro.param`` statements are those of a program.

    :param func: the function.
    :param param_store: where its parameters are.
    """

    def __init__(self, func: Callable[..., Any], param_store: ParamStatements) -> None:
        functools.update_wrapper(self, func)
        self.func = func
        self.param_store = param_store
        try:
            _programs[func] = weakref.ref(param_store)
        except TypeError:  # not weakly referable: nothing is said of it
            pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.param_store:
            return self.func(*args, **kwargs)
