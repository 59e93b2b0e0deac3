"""A program: a model and a guide, two Pyro callables that take the same batch.

Everything in :mod:`pyro_dgm.infer` and :mod:`pyro_dgm.analysis` works on programs and needs nothing else of
them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.poutine.runtime import _PYRO_STACK, effectful
from torch.distributions import constraints

from pyro_dgm.programs.param_statements import ParamStatements, WithParamStatements

__all__ = [
    "Batch",
    "Program",
    "ProgramLike",
    "as_program",
    "emit_param_message",
    "emit_param_messages",
    "is_plain",
    "owner_modules",
    "param_messages",
    "program",
    "split_batch",
]

_emitted: ContextVar[bool] = ContextVar("param_messages_emitted", default=True)


@contextmanager
def param_messages(enabled: bool) -> Iterator[None]:
    """Enable or disable :func:`emit_param_messages` inside.

    For a small network the messages cost as much as its layers, so they are disabled where no handler reads them.
    """
    token = _emitted.set(enabled)
    try:
        yield
    finally:
        _emitted.reset(token)


def emit_param_messages(module: torch.nn.Module) -> None:
    """Send a ``param`` message for each parameter of a module, so that Pyro's ``SVI`` trains it; stores nothing."""
    # Pyro's own messages for module-local parameters lack `unconstrained`, which SVI.step calls.
    if not _PYRO_STACK or not _emitted.get():
        return
    for name, parameter in module.named_parameters():
        # The id keeps two modules of one class apart: a trace drops the second of two params of one name.
        emit_param_message(f"{type(module).__name__}.{id(module)}.{name}", parameter)


def emit_param_message(name: str, parameter: torch.Tensor) -> None:
    """Send a ``param`` message for a leaf tensor."""
    value = parameter.view_as(parameter)
    setattr(value, "unconstrained", functools.partial(_identity, parameter))  # noqa: B010
    effectful(lambda *_, **__: value, type="param")(name, value, constraint=constraints.real, name=name)


def _identity(parameter: torch.Tensor) -> torch.Tensor:
    return parameter


@runtime_checkable
class ProgramLike(Protocol):
    """Anything with a ``model`` and a ``guide``: two Pyro callables that take the same arguments."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


class Program(torch.nn.Module):
    """A model and a guide as one module.

    Use :func:`program` to make one from your own callables.  Where a callable is a :class:`torch.nn.Module` (or a
    bound method of one) its parameters are parameters of the program, so ``program.parameters()``,
    ``program.to(device)`` and ``program.state_dict()`` do what they do on any module.  Parameters that
    ``pyro.param`` statements of plain functions create are kept in ``program.param_store``; they belong to this program
    only.

    :param model: the model.
    :param guide: the guide.
    :param own_store: whether the parameters of plain functions are kept here; else they are in Pyro's global store.
    """

    model: Any
    guide: Any

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], *, own_store: bool = True) -> None:
        super().__init__()
        for name, fn in (("model", model), ("guide", guide)):
            if isinstance(fn, type):
                raise TypeError(f"program(): {name} must be a callable with Pyro sites, got the class {fn.__name__}")
            if not callable(fn):
                raise TypeError(f"program(): {name} must be a callable with Pyro sites, got {type(fn).__name__}")
        own = None
        if own_store and not all(any(owner_modules(fn)) for fn in (model, guide)):
            own = self.param_store = ParamStatements()
            model, guide = (f if any(owner_modules(f)) else WithParamStatements(f, own) for f in (model, guide))
        self.model = model
        self.guide = guide
        # Bound methods (`vae.model`) are no submodules; their owners are, or their parameters would be lost.
        owners = [m for fn in (model, guide) for m in owner_modules(fn) if m is not fn and m is not own]
        unique = list(dict.fromkeys(owners))
        if unique:
            self._owners = torch.nn.ModuleList(unique)

    def extra_repr(self) -> str:
        parts = []
        for name in ("model", "guide"):
            fn = getattr(self, name)
            if not isinstance(fn, torch.nn.Module):
                parts.append(f"{name}={getattr(fn, '__qualname__', repr(fn))}")
        return ", ".join(parts)


def program(model: Callable[..., Any], guide: Callable[..., Any]) -> Program:
    """Pair a Pyro model with a guide, so that every objective, sampler and analysis of the library takes them.

    The parameters of ``pyro.param`` statements in plain functions are the program's own: two programs of the same
    functions share none, and Pyro's global store stays as it was.  Read them by ``program.param_store["name"]``, and
    run the trained functions as ``program.model`` and ``program.guide``.  A parameter that is in Pyro's store already,
    since ``SVI`` has trained it there, is used and trained where it is.

    :param model: a callable with ``pyro.sample`` sites; its arguments are a batch of data.
    :param guide: a callable with the same arguments, with one ``pyro.sample`` site for each latent of the model
        (an ``AutoGuide`` is one).
    :raises TypeError: if either is not callable.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> import pyro_dgm
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> p = pyro_dgm.program(model, AutoNormal(model))
        >>> isinstance(p, torch.nn.Module)
        True
    """
    return Program(model, guide)


def as_program(obj: Any, argument: str = "program") -> Any:
    """Check that ``obj`` has a ``model`` and a ``guide``; a ``(model, guide)`` pair is made into a program.

    The parameters of plain functions in a pair are in Pyro's store: the pair could not keep them from one call to the
    next.
    """
    if isinstance(obj, tuple) and len(obj) == 2 and all(callable(fn) for fn in obj):
        return Program(*obj, own_store=False)
    if isinstance(obj, type):
        raise TypeError(f"{argument} must be an instance, {obj.__name__}(...), got the class itself")
    if callable(getattr(obj, "model", None)) and callable(getattr(obj, "guide", None)):
        return obj
    raise TypeError(
        f"{argument} must have .model and .guide (a family of pyro_dgm.models, or pyro_dgm.program(model, guide)), "
        f"got {type(obj).__name__}"
    )


def owner_modules(fn: Any) -> Iterator[torch.nn.Module]:
    """The module behind a callable: itself, or the object it is a bound method of (through ``functools.partial``)."""
    while hasattr(fn, "func") and not isinstance(fn, torch.nn.Module):
        if isinstance(fn, WithParamStatements):
            yield fn.param_store
        fn = fn.func
    if isinstance(fn, torch.nn.Module):
        yield fn
    elif isinstance(getattr(fn, "__self__", None), torch.nn.Module):
        yield fn.__self__


def is_plain(fn: Any) -> bool:
    """Whether a callable has no module behind it but one of ``pyro.param`` statements, which may come at any time."""
    return all(isinstance(module, ParamStatements) for module in owner_modules(fn))


@dataclass(frozen=True)
class Batch:
    """Data as they reach a program, ``model(*args, **kwargs)``, and how many data they are.

    :ivar args: positional arguments.
    :ivar kwargs: keyword arguments.
    :ivar size: number of data.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    size: int

    @property
    def packed(self) -> Any:
        """The arguments as one tuple, or one mapping: what :func:`split_batch` takes apart."""
        return self.kwargs or self.args


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a batch reaches a program: tuple or list as ``*args``, mapping as ``**kwargs``, all else as one argument."""
    if isinstance(batch, Batch):
        return batch.args, batch.kwargs
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    return (batch,), {}
