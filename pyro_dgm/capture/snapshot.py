"""What a recorded graph takes for granted: the Python values that a program reads, and the tensors that it trains.

A graph holds the operations of one run.  A number in an attribute, a module's mode, a frozen parameter were decided by
Python then.  A snapshot holds them: when it changes, the graph is compared with the program again, or
made anew.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor, nn

__all__ = ["Snapshot", "hook_of", "module_key", "snapshot"]

#: things looked at in all, and the depth of attributes in attributes (0.07 ms for a VAE of two layers a side)
_MOST, _DEPTH = 20_000, 8
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
#: kinds of global variables that a function may read numbers or tensors from
_GLOBALS = (*_PLAIN, Tensor, nn.Module, types.FunctionType, list, tuple, dict, functools.partial)
#: dictionaries of hooks that a module keeps
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: what torch keeps of a module beside its user's attributes, or is looked at by name
_OWN = frozenset([*vars(nn.Module()), "_pyro_name", "_pyro_context"])


class Snapshot(NamedTuple):
    """A snapshot of a program.

    :ivar structure: parameters with whether they are trained, modes, hooks, options of optimisers, torch's settings: a
        graph is recorded for one of these.
    :ivar values: Python numbers, strings and the like, in the order in which they were reached.
    :ivar tensors: identities of the tensors that were reached.
    :ivar hook: what has a hook of the user's, which no graph can call; ``""`` if nothing has.
    """

    structure: tuple[Any, ...]
    values: tuple[Any, ...]
    tensors: frozenset[int]
    hook: str


def snapshot(objects: Iterable[Any], optimizer: Any = None) -> Snapshot:
    """Look at what can be reached from functions, modules and objects: attributes, closures, defaults and globals.

    :param optimizer: one whose update is in the graph too; its options but for the learning rates are looked at.
    """
    walk = _Walk()
    for obj in objects:
        walk.visit(obj, 0)
    for name, value in pyro.get_param_store()._params.items():
        walk.parameter(f"pyro.param {name!r}", value)
    if optimizer is not None:
        for group in optimizer.param_groups:
            options = {k: v for k, v in group.items() if k not in ("params", "lr")}
            walk.structure.append((tuple(map(id, group["params"])), repr(sorted(options.items(), key=lambda o: o[0]))))
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    walk.structure.append((torch.get_default_dtype(), torch.get_float32_matmul_precision(), autocast))
    return Snapshot(tuple(walk.structure), tuple(walk.values), frozenset(walk.tensors), walk.hook)


def hook_of(modules: Iterable[nn.Module]) -> str:
    """The first of the modules, or of their parameters, that has a hook of the user's; ``""`` if none has."""
    for module in modules:
        fields = vars(module)
        if any([fields[name] for name in _HOOKS]):  # noqa: C419 - a list is faster, and most have none
            # Torch's own, such as weight_norm's, are tensor operations and belong to the graph.
            hooks = [hook for name in _HOOKS for hook in fields[name].values()]
            if any(not _module_of(hook).startswith("torch.") for hook in hooks):
                return f"{type(module).__name__} has a hook"
        for name, p in fields["_parameters"].items():
            if p is not None and _has_hooks(p):
                return f"parameter {name!r} of {type(module).__name__} has a hook"
    return ""


def module_key(modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Parameters of modules, which of them are trained, and submodules: cheap enough to be looked at on every call."""
    key: list[Any] = []
    for module in modules:
        for p in vars(module)["_parameters"].values():
            key.append(None if p is None else (id(p), p.requires_grad))
        key.extend(map(id, vars(module)["_modules"].values()))
    return tuple(key)


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks) or bool(getattr(tensor, "_post_accumulate_grad_hooks", None))


def _module_of(hook: Any) -> str:
    fn = hook.__func__ if inspect.ismethod(hook) else hook
    return f"{getattr(fn, '__module__', None) or type(fn).__module__}."


class _Walk:
    def __init__(self) -> None:
        self.structure: list[Any] = []
        self.values: list[Any] = []
        self.tensors: set[int] = set()
        self.hook = ""
        self._seen: dict[int, Any] = {}  # keeps what was seen alive, so that no id comes twice

    def visit(self, obj: Any, depth: int) -> None:
        if isinstance(obj, _PLAIN):
            self.values.append(obj if obj == obj else "nan")
            return
        if id(obj) in self._seen or depth > _DEPTH or len(self._seen) > _MOST:
            return
        self._seen[id(obj)] = obj
        if isinstance(obj, Tensor):
            self.tensors.add(id(obj))
            self.values.append(("tensor", id(obj)))
        elif isinstance(obj, nn.Module):
            self._module(obj, depth)
        elif isinstance(obj, np.ndarray):
            self.values.append((obj.shape, obj.tobytes() if obj.nbytes < 2**16 else id(obj)))
        elif isinstance(obj, Mapping):
            self.values.append(len(obj))
            for key, value in list(obj.items()):
                self.visit(key, depth + 1)
                self.visit(value, depth + 1)
        elif isinstance(obj, (list, tuple)):
            self.values.append(len(obj))
            for value in obj:
                self.visit(value, depth + 1)
        elif isinstance(obj, (set, frozenset)):
            self.values.append(sorted(map(repr, obj)))
        elif isinstance(obj, types.MethodType):
            self.visit(obj.__func__, depth)
            self.visit(obj.__self__, depth)
        elif isinstance(obj, types.FunctionType):
            self._function(obj, depth)
        elif isinstance(obj, functools.partial):
            for part in (obj.func, obj.args, obj.keywords):
                self.visit(part, depth + 1)
        elif not isinstance(obj, (type, types.ModuleType, types.BuiltinFunctionType)):
            self._object(obj, depth)

    def parameter(self, name: str, p: Tensor) -> None:
        self.tensors.add(id(p))
        self.structure.append((id(p), p.requires_grad))
        if _has_hooks(p) and not self.hook:
            self.hook = f"{name} has a hook"

    def _module(self, module: nn.Module, depth: int) -> None:
        fields = vars(module)
        self.structure.append((id(module), module.training, module_key([module])))
        self.hook = self.hook or hook_of([module])
        for p in fields["_parameters"].values():
            if p is not None:
                self.tensors.add(id(p))
        for b in fields["_buffers"].values():
            self.visit(b, depth + 1)
        for name, value in list(fields.items()):
            if name not in _OWN:
                self.visit(value, depth + 1)
        for child in list(fields["_modules"].values()):
            self.visit(child, depth)

    def _object(self, obj: Any, depth: int) -> None:
        self.values.append(id(type(obj)))
        for name, value in list(getattr(obj, "__dict__", {}).items()):
            if not name.startswith("__"):
                self.visit(value, depth + 1)

    def _function(self, fn: types.FunctionType, depth: int) -> None:
        self.values.append(id(fn.__code__))
        if fn.__module__ and fn.__module__.partition(".")[0] in ("torch", "pyro", "pyro_dgm") and not fn.__closure__:
            return  # of a library: what it reads are constants
        for value in (fn.__defaults__, fn.__kwdefaults__):
            self.visit(value, depth + 1)
        for cell in fn.__closure__ or ():
            try:
                self.visit(cell.cell_contents, depth + 1)
            except ValueError:  # a variable that is not bound yet
                continue
        for name in _names(fn.__code__):
            value = fn.__globals__.get(name)
            if isinstance(value, _GLOBALS):
                self.visit(value, depth + 1)


@functools.lru_cache(maxsize=512)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names that a function's code may look up among the globals, those of functions inside it too."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return (*code.co_names, *(name for c in inner for name in _names(c)))
