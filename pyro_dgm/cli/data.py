"""A data set as a command needs it: by name, binarised in a way that has a name, in the family's shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pyro_dgm.cli.errors import UsageError

__all__ = ["BINARIZATIONS", "Data", "load_data"]

#: what --binarize takes; "dynamic" draws training and validation pixels anew for each batch
BINARIZATIONS = ("threshold", "stochastic", "dynamic", "none")
#: images set aside for validation, where a set leaves that to the user
NUM_VALIDATION = {"digits": 200, "mnist": 10_000}


@dataclass
class Data:
    """Training, validation and test data.

    ``test`` is never drawn anew: figures on it can be had again.  ``transform`` draws a training batch.
    ``note`` is what has to be said beside a figure.  A table from a file has ``columns``, and was standardised or not.
    """

    name: str
    train: Any
    validation: Any
    test: Any
    test_labels: Any
    event_shape: tuple[int, ...]
    transform: Callable[[Any], Any] | None
    note: str
    columns: tuple[str, ...] = ()
    standardization: Any = None

    def as_levels(self, num_levels: int) -> Data:
        """Grey values in [0, 1] as integers from 0 to ``num_levels - 1``."""
        made = [None if x is None else (x * (num_levels - 1)).round() for x in (self.train, self.validation, self.test)]
        note = f"{self.note}, as integers from 0 to {num_levels - 1}"
        return replace(self, train=made[0], validation=made[1], test=made[2], note=note)


def load_data(name: str, binarize: str | None, *, num_validation: int | None = None, flat: bool = False) -> Data:
    """Load a set by its name.

    :param binarize: one of :data:`BINARIZATIONS`; ``None`` leaves grey what is grey.
    :param num_validation: images to set aside; by default :data:`NUM_VALIDATION`.
    :param flat: give vectors, not images.
    :raises UsageError: for a name that there is not, or options that the set does not have.
    """
    import torch

    from pyro_dgm import datasets
    from pyro_dgm.datasets.registry import DATASETS

    if name not in datasets.list():
        raise UsageError(f"there is no data set {name!r}; there are {', '.join(datasets.list())}")
    if binarize not in (None, *BINARIZATIONS):
        raise UsageError(f"--binarize: {binarize!r} is not one of {', '.join(BINARIZATIONS)}")
    known = inspect.signature(DATASETS[name]).parameters
    method = None if binarize == "none" else binarize
    options: dict[str, Any] = {}
    if "binarize" in known:
        options["binarize"] = None if method == "dynamic" else method
    elif method is not None:
        raise UsageError(f"--binarize: {name} comes binarised; leave the option out")
    if "num_validation" in known:
        options["num_validation"] = NUM_VALIDATION.get(name, 0) if num_validation is None else num_validation
    elif num_validation is not None:
        raise UsageError(f"--num-validation: {name} has a validation part of its own; leave the option out")
    try:
        made = datasets.load(name, **options)
    except ValueError as error:
        raise UsageError(f"data set {name}: {error}") from error
    test, note, transform = made.test, made.note, None
    if method == "dynamic":
        transform = datasets.dynamic_binarization
        test = datasets.dynamic_binarization(test, torch.Generator().manual_seed(0))
        drawn = "training pixels drawn anew for each batch, validation and test pixels drawn once"
        note = note.replace("grey", f"binarised (dynamic: {drawn})")

    def shaped(x: Any) -> Any:
        return x.flatten(1) if flat and x is not None else x

    return Data(
        name=name,
        train=shaped(made.train),
        validation=shaped(made.validation),
        test=shaped(test),
        test_labels=made.test_labels,
        event_shape=tuple(made.event_shape),
        transform=transform,
        note=note,
    )
