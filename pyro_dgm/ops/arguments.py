"""Checks of arguments that many functions take: counts, seeds and devices, with one wording of each refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch

__all__ = [
    "LARGEST_COUNT",
    "LARGEST_SEED",
    "check_choice",
    "check_count",
    "check_counts",
    "check_device",
    "check_floating",
    "check_image",
    "check_number",
    "check_positive",
    "check_seed",
    "check_sizes",
]

#: largest count that is taken: more draws, particles or steps than this are a slip of the pen
LARGEST_COUNT = 2**31 - 1
#: seeds are below this, so that a few can be made of one by adding
LARGEST_SEED = 2**62


def check_count(argument: str, value: Any, least: int = 1, *, optional: bool = False, why: str = "") -> Any:
    """Check that an argument is an integer in range.

    :param argument: its name, for the message.
    :param value: what was given.  Integers of NumPy count as integers; ``True`` and ``2.0`` do not.
    :param least: smallest value that is accepted.
    :param optional: whether ``None`` is accepted too.
    :param why: reason for the least value, in the message.
    :returns: the value as an ``int`` (or ``None``).
    :raises TypeError: if it is no integer.
    :raises ValueError: if it is below ``least`` or above ``2**31 - 1``.

    Example::

        >>> from pyro_dgm.ops.arguments import check_count
        >>> check_count("num_samples", 10)
        10
    """
    if value is None and optional:
        return None
    wanted = f"an integer of at least {least}{f' ({why})' if why else ''}{', or None' if optional else ''}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be {wanted}, got {value!r}")
    count = int(value)
    if count < least:
        raise ValueError(f"{argument} must be {wanted}, got {value!r}")
    if count > LARGEST_COUNT:
        raise ValueError(f"{argument} must be an integer from {least} to 2**31 - 1, got {value!r}")
    return count


def check_counts(least: int = 1, **counts: Any) -> None:
    """:func:`check_count` of several arguments, each given by its name."""
    for argument, value in counts.items():
        check_count(argument, value, least)


def check_choice(argument: str, value: Any, *choices: Any) -> Any:
    """Check that an argument is one of a few values.

    :raises ValueError: if it is none of them.
    """
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{argument} must be {', '.join(others)} or {last}, got {value!r}")
    return value


def check_sizes(argument: str, value: Any, least: int = 1) -> tuple[int, ...]:
    """Check a sequence of sizes: each an integer of at least ``least``.

    :returns: them as a tuple of ``int``.
    :raises TypeError: if it is no sequence, or holds what is no integer.
    :raises ValueError: if a size is out of range.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{argument} must be a tuple or list of integers, got {value!r}")
    return tuple(check_count(f"{argument}[{i}]", size, least) for i, size in enumerate(value))


def check_image(argument: str, value: Any) -> tuple[int, int, int]:
    """Check the shape of an image, ``(C, H, W)``.

    :returns: it as a tuple of ``int``.
    :raises TypeError: if it is no sequence of integers.
    :raises ValueError: if it has another length, or a size is not positive.
    """
    shape = check_sizes(argument, value)
    if len(shape) != 3:
        raise ValueError(f"{argument} must be that of an image, (channels, height, width), got {shape}")
    return shape[0], shape[1], shape[2]


def check_seed(value: Any, argument: str = "seed", *, optional: bool = True) -> Any:
    """Check a seed: an integer from 0 to ``2**62``, or ``None`` where that is accepted.

    :raises TypeError: if it is no integer.
    :raises ValueError: if it is out of range.
    """
    if value is None and optional:
        return None
    wanted = f"{argument} must be an integer from 0 to 2**62{', or None' if optional else ''}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(wanted)
    if not 0 <= int(value) < LARGEST_SEED:
        raise ValueError(wanted)
    return int(value)


def check_floating(argument: str, value: torch.Tensor) -> None:
    """Refuse a tensor of another dtype than floating point with a ``ValueError``."""
    if not torch.is_floating_point(value):
        raise ValueError(f"{argument} must be floating point, got {value.dtype}: convert it with {argument}.float()")


def check_device(value: Any, argument: str = "device") -> torch.device:
    """A device by its name, checked to be there; ``"cuda"`` is the current CUDA device.

    :raises TypeError: if it is neither a string nor a :class:`torch.device`.
    :raises ValueError: for a name that torch does not know, or a device that this machine does not have.
    """
    if not isinstance(value, (str, torch.device)):
        raise TypeError(
            f"{argument} must be a string such as 'cpu' or 'cuda:0', or a torch.device, got {type(value).__name__}"
        )
    try:
        made = torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"{argument} must be 'cpu', 'cuda', 'cuda:1' or the like, got {value!r}") from error
    if made.type == "meta":
        raise ValueError(f"{argument} must be one that computes, got {str(value)!r}: tensors there hold no values")
    if made.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (made.index or 0) >= count:
            there = f"this machine has {count} CUDA devices, cuda:0 to cuda:{count - 1}" if count else (
                "torch finds no CUDA device on this machine"
            )  # fmt: skip
            raise ValueError(f"{argument} must be a device that is there, got {str(value)!r}: {there}")
        return made if made.index is not None else torch.device("cuda", torch.cuda.current_device())
    try:
        torch.empty(0, device=made)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{argument} must be a device that is there, got {str(value)!r}, which torch cannot use: {reason}"
        ) from error
    return made


def check_number(
    argument: str,
    value: Any,
    *,
    optional: bool = False,
    finite: bool = False,
    within: str = "",
    least: float | None = None,
) -> Any:
    """Check that an argument is a real number at all, before it is compared with anything; scalar tensors count.

    :param optional: whether ``None`` is accepted too.
    :param finite: whether it must be finite.
    :param within: the interval that it must be in, as ``"[0, 1)"``.
    :param least: smallest value that is accepted.
    :raises TypeError: for anything else, ``True`` and ``"3"`` too.
    :raises ValueError: for a number out of range.
    """
    if value is None and optional:
        return None
    scalar = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
    if isinstance(value, bool) or not (isinstance(value, Real) or scalar):
        raise TypeError(f"{argument} must be a number{', or None' if optional else ''}, got {value!r}")
    if finite and not math.isfinite(value):
        raise ValueError(f"{argument} must be a finite number, got {value!r}")
    if within:
        low, high = (float(end) for end in within[1:-1].split(","))
        above = value > low if within[0] == "(" else value >= low
        if not (above and (value < high if within[-1] == ")" else value <= high)):
            raise ValueError(f"{argument} must be in {within}, got {value!r}")
    if least is not None and not value >= least:
        raise ValueError(f"{argument} must be at least {least:g}, got {value!r}")
    return value


def check_positive(argument: str, value: Any, *, optional: bool = False) -> Any:
    """Check that an argument is a positive, finite number.

    :param optional: whether ``None`` is accepted too.
    :raises TypeError: if it is no number.
    :raises ValueError: if it is not positive, or not finite.
    """
    check_number(argument, value, optional=optional)
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{argument} must be positive and finite, got {value}")
    return value
