"""What every function that takes a program and a batch does first: find model and guide, and check the batch.

The checks look at the batch as a whole, once.  Loops over parts of it, training steps and samplers have none.  That
model and guide fit each other is checked by running them once (:func:`pyro_dgm.programs.structure.probe`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.programs import owner_modules, split_batch
from pyro_dgm.programs.tensors import batch_arguments, constant_tensors, named_tensors, refuse_meta

__all__ = [
    "check_batch",
    "check_dtypes",
    "checked_arguments",
    "checked_batch",
    "model_and_guide",
    "refuse_inference_mode",
]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def model_and_guide(obj: Any) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """The model, and the guide where there is one, of a program, a pair of callables or a bare model.

    :raises TypeError: if there is no model to be found.
    """
    if isinstance(obj, tuple) and len(obj) == 2 and all(callable(fn) for fn in obj):
        return obj
    if isinstance(obj, type):
        raise TypeError(f"program_or_model must be an instance, {obj.__name__}(...), got the class itself")
    model, guide = getattr(obj, "model", None), getattr(obj, "guide", None)
    if callable(model):
        return model, guide if callable(guide) else None
    if callable(obj):
        return obj, None
    raise TypeError(f"program_or_model must have .model (and .guide), or be a Pyro model, got {type(obj).__name__}")


def checked_batch(program: Any, batch: Any, argument: str = "x", *, gradients: bool = False) -> Arguments:
    """A batch as the arguments that reach a program, checked.

    :param program: what :func:`model_and_guide` takes.
    :param batch: a tensor, or a tuple, list or mapping of the program's arguments.
    :param argument: its name, for messages.
    :param gradients: whether gradients will be computed.
    :returns: positional and keyword arguments; their tensors are constants, without gradient.
    :raises TypeError: if the model does not take these arguments, or the program's ``check_batch`` says so.
    :raises ValueError: for tensors without values or on another device than the parameters, or likewise.
    """
    args, kwargs = split_batch(batch)
    return checked_arguments(program, args, kwargs, argument, gradients=gradients)


def checked_arguments(
    program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], argument: str = "x", *, gradients: bool = False
) -> Arguments:
    """As :func:`checked_batch`, of a batch that is split already."""
    if gradients:
        refuse_inference_mode()
    args, kwargs = constant_tensors(args), constant_tensors(kwargs)
    check_batch(program, args, kwargs, argument)
    return args, kwargs


def refuse_inference_mode() -> None:
    """:raises RuntimeError: where torch records no gradients whatever is asked of it."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("gradients are needed here: call this outside torch.inference_mode()")


def check_batch(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], argument: str = "x") -> None:
    """Check a batch against a program: its tensors, the program's arguments, devices, and its own ``check_batch``.

    :raises TypeError: as :func:`checked_batch`.
    :raises ValueError: likewise.
    """
    model, guide = model_and_guide(program)
    alone = len(args) == 1 and not kwargs
    tensors = list(named_tensors(args[0] if alone else args, argument)) + list(named_tensors(kwargs, argument))
    refuse_meta(tensors)
    for name, tensor in tensors:
        if tensor.is_quantized:
            raise TypeError(
                f"{name} is quantised ({tensor.dtype}), and densities take real numbers: {name}.dequantize()"
            )
    rows = [tensor.shape[0] for _, tensor in tensors if tensor.dim() > 0]
    for role, fn in (("model", model), ("guide", guide)):
        if fn is not None:
            _check_binds(role, fn, args, kwargs, argument)
    if rows and not any(rows):
        raise ValueError(f"{argument} holds no data: the shapes are {[tuple(t.shape) for _, t in tensors]}")
    owners = [m for part in (program, model, guide) if part is not None for m in owner_modules(part)]
    parameters = [p for m in dict.fromkeys(owners) for p in m.parameters()]
    _check_devices(tensors, parameters)
    own = getattr(program, "check_batch", None)
    if callable(own):
        check_dtypes(tensors, {p.dtype for p in parameters if p.is_floating_point()})
        own(*args, **kwargs)


def check_dtypes(tensors: list[tuple[str, Tensor]], dtypes: set[torch.dtype]) -> None:
    """:raises ValueError: for a floating tensor of another dtype than the parameters have."""
    for name, tensor in tensors:
        if dtypes and tensor.is_floating_point() and tensor.dtype not in dtypes:
            wanted = " or ".join(sorted(str(d) for d in dtypes))
            raise ValueError(
                f"{name} is {tensor.dtype}, the program's parameters are {wanted}: convert one, "
                f"x.to({next(iter(dtypes))}) or program.to({tensor.dtype})"
            )


def _check_binds(role: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], argument: str) -> None:
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"{argument}: the {role} takes ({', '.join(signature.parameters)}), but the batch gives it "
            f"({batch_arguments(args, kwargs)}): {error}. A "
            "tuple or list is passed as positional arguments and a mapping as keyword arguments; where the program "
            "takes one tensor, give that tensor alone (arrays and lists of numbers: torch.as_tensor)"
        ) from error


def _check_devices(tensors: list[tuple[str, Tensor]], parameters: Sequence[Tensor]) -> None:
    there = {p.device for p in parameters}
    for name, tensor in tensors:
        if there and tensor.dim() > 0 and tensor.device not in there:
            where = " and ".join(sorted(str(d) for d in there))
            raise ValueError(
                f"{name} is on {tensor.device}, the program's parameters are on {where}: move one, "
                f"{name}.to({str(next(iter(there)))!r})"
            )
