"""A description of a run's settings as JSON, to compare a resumed run with the saved one.

Everything that decides how training goes on is described: the program's modules, the objective and its settings, the
optimiser and its options, the data.  A description contains numbers, strings, lists and dicts; a function is described
by its name, an object by its class and its arguments, a tensor by shape, dtype and checksum.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.infer.elbo import ELBO as PyroELBO
from torch import Tensor, nn

from pyro_dgm.infer.train.batches import Batches, LoaderBatches, TensorBatches
from pyro_dgm.infer.train.optimizers import Optimizers
from pyro_dgm.infer.train.paired import PairedBatches
from pyro_dgm.programs.tensors import named_tensors

__all__ = ["describe", "describe_data", "describe_modules", "describe_optimizer", "differences"]

#: options that change how fast an optimiser is or how its graph is made, not what it does
_HOW = {"params", "fused", "foreach", "capturable", "differentiable"}
#: an ELBO's arguments that change no number
_HINTS = {"max_plate_nesting", "ignore_jit_warnings", "jit_options", "strict_enumeration_warning", "retain_graph"}
#: bytes of a tensor that its checksum is taken of, at most
CHECKED_BYTES = 2**24
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe(value: Any, depth: int = 4) -> Any:
    """A value as JSON, the same in each process for the same value."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": checksum(value)}
    if isinstance(value, functools.partial):
        value = {"function": value.func, "arguments": list(value.args), **value.keywords}
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [describe(item, depth - 1) for item in value]
        return sorted(items, key=json.dumps) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, nn.Module):
        return {"class": type(value).__name__, "modules": describe_modules({"": value})}
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return value.__qualname__
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return str(value)
    settings = {} if depth <= 0 else {k: describe(v, depth - 1) for k, v in _arguments(value)}
    return {"class": type(value).__name__, **settings}


def _arguments(obj: Any) -> Iterator[tuple[str, Any]]:
    """What an object was constructed with, where it keeps that under the argument's name."""
    try:
        parameters = inspect.signature(type(obj)).parameters
    except (TypeError, ValueError):  # a class in C
        return
    names = dict.fromkeys(parameters)
    for base in type(obj).__mro__:  # a class that passes **kwargs on has its parents' arguments too
        if "__init__" in vars(base) and base is not object:
            names.update(dict.fromkeys(inspect.signature(vars(base)["__init__"]).parameters))
    attributes = getattr(obj, "__dict__", {})
    for name in names:
        if name not in _HINTS and (name in attributes or f"_{name}" in attributes):
            yield name, attributes[name] if name in attributes else attributes[f"_{name}"]
    if isinstance(obj, PyroELBO):  # some keep an argument in another form, and all print what they were asked for
        yield "shown", _ADDRESS.sub("", repr(obj))


def describe_modules(roots: Mapping[str, nn.Module]) -> dict[str, str]:
    """Each module of a program by its path: its class, its ``extra_repr``, and its functions."""
    found = {}
    for prefix, root in roots.items():
        for path, module in root.named_modules():
            functions = sorted(
                f"{key}={value.__qualname__}"
                for key, value in vars(module).items()
                if not key.startswith("_") and callable(value) and hasattr(value, "__qualname__")
            )
            text = ", ".join([module.extra_repr(), *functions] if functions else [module.extra_repr()])
            found[(prefix + path).rstrip(".")] = f"{type(module).__name__}({_ADDRESS.sub('', text)[:500]})"
    return found


def describe_optimizer(optimizer: torch.optim.Optimizer | Optimizers) -> Any:
    """Class and options of an optimiser, group by group; the learning rate is that before any schedule."""
    if isinstance(optimizer, Optimizers):
        return {name: describe_optimizer(one) for name, one in optimizer.optimizers.items()}
    groups = []
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key not in _HOW and key != "initial_lr"}
        options["lr"] = group.get("initial_lr", group.get("lr"))
        numbers = {k: v.item() if isinstance(v, Tensor) and v.dim() == 0 else v for k, v in options.items()}
        groups.append(describe(numbers))
    return {"class": type(optimizer).__name__, "groups": groups}


def describe_scheduler(scheduler: Any) -> Any:
    """Class and settings of a scheduler that has not stepped yet; of one of several, by name."""
    if scheduler is None:
        return None
    if hasattr(scheduler, "schedulers"):
        return {name: describe_scheduler(one) for name, one in scheduler.schedulers.items()}
    state = scheduler.state_dict() if hasattr(scheduler, "state_dict") else {}
    settings = {key: value for key, value in state.items() if not key.startswith("_") and key not in _COUNTERS}
    return {"class": type(scheduler).__name__, **describe(settings)}


#: what a scheduler keeps of its steps: one that is given as an object may have taken some
_COUNTERS = {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "verbose", "T_cur", "T_i", "base_lrs"}


def describe_data(batches: Batches | None, content: bool = True) -> Any:
    """Number, shapes, dtypes and, with ``content``, checksums of data; of a loader what it knows."""
    if isinstance(batches, TensorBatches):
        return {name: _tensor(t, content) for name, t in named_tensors(batches.data)}
    if isinstance(batches, PairedBatches):
        return [describe_data(source, content) for source in batches.sources]
    if isinstance(batches, LoaderBatches):
        dataset = batches.loader.dataset
        found: dict[str, Any] = {
            "dataset": type(dataset).__name__, "length": batches.length, "batches": batches.num_batches,
            "batch_size": batches.loader.batch_size,
        }  # fmt: skip
        if isinstance(dataset, torch.utils.data.TensorDataset):
            found.update((name, _tensor(t, content)) for name, t in named_tensors(dataset.tensors))
        return found
    return None


def _tensor(tensor: Tensor, content: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
    return {**found, "sha256": checksum(tensor)} if content else found


@torch.no_grad()
def checksum(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes; of one above 16 MiB, of rows at even distances that amount to so many."""
    size = tensor.numel() * tensor.element_size()
    if size > CHECKED_BYTES and tensor.dim() > 0:
        rows = max(1, CHECKED_BYTES * len(tensor) // size)
        tensor = tensor[torch.linspace(0, len(tensor) - 1, rows, dtype=torch.float64).long().to(tensor.device)]
    plain = tensor.detach().to("cpu").to_dense() if tensor.layout != torch.strided else tensor.detach().to("cpu")
    values = plain.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return hashlib.sha256(values.view(torch.uint8).numpy().data).hexdigest()


def differences(saved: Any, given: Any, where: str = "") -> Iterator[str]:
    """Where two descriptions differ, each in words."""
    if isinstance(saved, Mapping) and isinstance(given, Mapping):
        for key in dict.fromkeys([*saved, *given]):
            path = f"{where}.{key}".strip(".") if key else where
            if key not in saved or key not in given:
                yield f"{path}: saved {_short(saved.get(key, _NOTHING))}, given {_short(given.get(key, _NOTHING))}"
            else:
                yield from differences(saved[key], given[key], path)
    elif isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given):
        for i, (a, b) in enumerate(zip(saved, given, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif saved != given:
        yield f"{where}: saved {_short(saved)}, given {_short(given)}"


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
