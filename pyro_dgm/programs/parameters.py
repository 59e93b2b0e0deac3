"""Which tensors a program trains, and everything of it that a checkpoint must hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyro_dgm.programs import owner_modules
from pyro_dgm.programs.one_at_a_time import TURN
from pyro_dgm.programs.param_statements import (
    ParamStatements,
    put_in_store,
    take_out_of_store,
    warn_of_other_parameters,
)

__all__ = [
    "ParameterRecorder",
    "ProgramState",
    "evaluation_mode",
    "leaves_the_store",
    "local_parameters",
    "local_store",
    "module_roots",
]

STORE_PREFIX = "param_store."
OBJECTIVE_PREFIX = "objective."


def module_roots(program: Any) -> dict[str, nn.Module]:
    """The modules that hold a program's parameters, by the prefix of their names (``""`` for the program itself)."""
    roots: dict[str, nn.Module] = {}
    known: set[int] = set()

    def add(prefix: str, module: nn.Module) -> None:
        if id(module) not in known:
            roots[prefix] = module
            known.update(id(m) for m in module.modules())

    if isinstance(program, nn.Module):
        add("", program)
    for role in ("model", "guide"):
        for module in owner_modules(getattr(program, role)):
            add(f"{role}.", module)
    return roots


class ParameterRecorder(Messenger):
    """Collect the unconstrained leaves behind each ``param`` message, by name, as ``pyro.infer.SVI`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        # A module-local parameter comes from Pyro without `unconstrained`: it is its own leaf.
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        if leaf is not None and leaf.is_leaf:
            self.found[msg["name"]] = leaf


#: whether the store holds what the running program's modules own, and nothing of other modules
_local: ContextVar[bool] = ContextVar("local_store", default=False)

#: what modules have registered in Pyro's store while their programs ran, to be there again when they run next
_registered: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()


class _LocalStore:
    """See :func:`local_store`.  Most programs register nothing, and then next to nothing is done."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = [m for m in modules if not isinstance(m, ParamStatements)]
        # A program is a module that has them.
        found = [m if isinstance(m, ParamStatements) else m._modules.get("param_store") for m in modules]
        self.statements = list(dict.fromkeys(m for m in found if isinstance(m, ParamStatements)))
        self.hidden: dict[str, tuple[Any, Any]] = {}
        self.before: set[str] = set()

    def __enter__(self) -> None:
        store = pyro.get_param_store()
        if store._params:
            owned = self._owned()
            # Of a PyroModule: other statements register plain leaves, or modules under names with Pyro's mark in them.
            others = [n for n, p in store._params.items() if isinstance(p, nn.Parameter) and id(p) not in owned]
            self.hidden = take_out_of_store([n for n in others if _MODULE_NAMESPACE_DIVIDER not in n])
            self.before = set(store._params)
        # What the modules have registered before is there at once: under vmap nothing can be registered.
        known = [values for module in self.modules if (values := _registered.get(module))]
        if known:
            owned = self._owned()
            for values in known:
                put_in_store({n: v for n, v in values.items() if id(v[0]) in owned and n not in store._params})
        for statements in self.statements:
            statements.__enter__()
        self.token = _local.set(True)

    def __exit__(self, *error: Any) -> None:
        _local.reset(self.token)
        store = pyro.get_param_store()
        if store._params:
            added = [name for name in store._params if name not in self.before]
            kept = {id(leaf) for statements in self.statements for leaf in statements._parameters.values()}
            for module in self.modules if added else ():
                own = {id(p) for p in module.parameters()} - kept
                names = [name for name in added if name in store._params and id(store._params[name]) in own]
                _registered[module] = take_out_of_store(names)
        for statements in self.statements:
            statements.__exit__()
        put_in_store(self.hidden)

    def _owned(self) -> set[int]:
        return {id(p) for module in self.modules for p in module.parameters()}


def local_store(roots: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
    """Parameters that live on modules stay on them: Pyro's global param store is, at the end, as it was.

    Outside ``module_local_params`` a ``PyroModule`` registers its parameters by class name, and the next object of
    that class silently takes them over.  So inside, what other modules have registered is out of the store; at the end
    it is back, and what these modules have registered is out.  What ``pyro.param`` and ``pyro.module`` statements put
    there stays, as in Pyro.
    """
    return _LocalStore(list(roots.values()))


def local_parameters(*fns: Any) -> AbstractContextManager[None]:
    """:func:`local_store` of the modules behind functions, where a program is run outside of anything that has one.

    Inside handlers of the user's, those of Pyro's ``SVI`` say, the store is theirs.
    """
    if _local.get() or _PYRO_STACK:
        return nullcontext()
    owners = [m for fn in fns if fn is not None for m in owner_modules(fn)]
    if len(owners) < len(fns):
        for fn in fns:
            warn_of_other_parameters(fn)
    return _LocalStore(list(dict.fromkeys(owners))) if owners else nullcontext()


Method = TypeVar("Method", bound=Callable[..., Any])


def leaves_the_store(method: Method) -> Method:
    """A method of ``(model, guide, *batch)`` that leaves Pyro's store as it was (:func:`local_parameters`).

    It waits for its turn (:func:`~pyro_dgm.programs.one_at_a_time.one_at_a_time`).
    """

    @functools.wraps(method)
    def wrapped(self: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        with TURN, local_parameters(model, guide):
            return method(self, model, guide, *args, **kwargs)

    return cast(Method, wrapped)


@contextmanager
def evaluation_mode(*objects: Any) -> Iterator[None]:
    """Modules behind objects and callables in ``eval()`` mode inside: no dropout, running statistics left alone.

    Parameters that live on them are kept out of Pyro's global store (:func:`local_store`).
    """
    found = [owner for obj in objects if obj is not None for owner in owner_modules(obj)]
    owners = {str(i): owner for i, owner in enumerate(dict.fromkeys(found))}
    training = list(dict.fromkeys(m for owner in owners.values() for m in owner.modules() if m.training))
    try:
        for module in training:
            module.training = False
        with local_store(owners):
            yield
    finally:
        for module in training:
            module.training = True


class ProgramState:
    """Every persistent tensor of a program and its objective, each once, by name.

    :param program: the program.
    :param objective: the objective, for the parameters it may have itself.
    """

    def __init__(self, program: Any, objective: Any = None) -> None:
        self.roots = module_roots(program)
        self._objective_modules: list[nn.Module] = []
        self.add_objective(objective)
        #: leaves found by param messages, on no module
        self.store: dict[str, Tensor] = {}
        self._known: set[int] = set()

    def add_objective(self, module: Any) -> None:
        """Count a module of the objective's (what ``objective(model, guide)`` made) among those that are trained."""
        if isinstance(module, nn.Module) and all(module is not m for m in self._objective_modules):
            self._objective_modules.append(module)

    def record(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take in what a :class:`ParameterRecorder` found; gives back the leaves that are new, by name."""
        if all(id(leaf) in self._known for leaf in found.values()):
            return {}  # the common case in a training step must not walk the modules
        owned = {id(p) for _, p in self._module_tensors()}
        new = {}
        for name, leaf in found.items():
            if id(leaf) not in owned and self.store.get(name) is not leaf:
                self.store[name] = leaf
                new[STORE_PREFIX + name] = leaf
        # Ids of live tensors only: one that was replaced in the store may give its id to a new one.
        self._known = owned | {id(leaf) for leaf in self.store.values()}
        return new

    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers; a tensor under two names is given under the first."""
        out: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in (*self._module_tensors(), *((STORE_PREFIX + k, v) for k, v in self.store.items())):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                out[name] = tensor
        return out

    def trainable(self) -> dict[str, Tensor]:
        """The leaves to optimise, by name."""
        return {name: t for name, t in self.named_tensors().items() if t.requires_grad and t.is_leaf}

    def buffers(self) -> list[Tensor]:
        """The buffers of all modules, those that are not persistent too."""
        modules = [*self.roots.values(), *self._objective_modules]
        return list({id(b): b for m in modules for b in m.buffers()}.values())

    def extras(self) -> dict[str, Any]:
        """What modules keep by ``get_extra_state``, which is no tensor."""
        return {
            prefix + key: value
            for prefix, module in self._prefixed()
            for key, value in module.state_dict(keep_vars=True).items()
            if key.endswith("_extra_state")
        }

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of :meth:`named_tensors`, on their devices."""
        return {name: t.detach().clone() for name, t in self.named_tensors().items()}

    def check(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Refuse values that :meth:`load` could not take; gives back the tensors that they would go to, by name.

        :raises ValueError: if the names or the shapes differ.
        """
        own = self.named_tensors()
        missing, unknown = sorted(own.keys() - values.keys()), sorted(values.keys() - own.keys())
        store = dict(pyro.get_param_store().named_parameters())
        for name in list(unknown):
            # A parameter that shows up late in training is not in the first trace, but may exist already.
            key = name.removeprefix(STORE_PREFIX)
            if name.startswith(STORE_PREFIX) and key in store:
                self.store[key] = own[name] = store[key]
                unknown.remove(name)
        if missing or unknown:
            raise ValueError(
                f"the saved weights are of another program: not saved {missing[:5]}, not in the program {unknown[:5]}"
                " (an AutoGuide's parameters exist once it has been called; so do those of pyro.param)"
            )
        for name, value in values.items():
            if own[name].shape != value.shape:
                raise ValueError(
                    f"saved {name!r} has shape {tuple(value.shape)}, the program's {tuple(own[name].shape)}"
                )
        return own

    def load(self, values: Mapping[str, Tensor], extras: Mapping[str, Any] | None = None) -> None:
        """Copy values in place, so that optimisers and closures keep their tensors.

        :raises ValueError: if the names or the shapes differ; then nothing was copied.
        """
        own = self.check(values)
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        for prefix, module in self._prefixed():
            mine = {k.removeprefix(prefix): v for k, v in (extras or {}).items() if k.startswith(prefix)}
            keys = module.state_dict(keep_vars=True).keys()
            mine = {k: v for k, v in mine.items() if k in keys}
            if mine:
                module.load_state_dict(mine, strict=False)

    def _prefixed(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self.roots.items()
        for module in self._objective_modules:
            yield OBJECTIVE_PREFIX, module

    def _module_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self._prefixed():
            for key, value in module.state_dict(keep_vars=True).items():
                if isinstance(value, Tensor) and not key.endswith("_extra_state"):
                    yield prefix + key, value
