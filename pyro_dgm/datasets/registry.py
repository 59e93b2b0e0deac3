"""Data sets by name, for the command line and for configurations."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from pyro_dgm.datasets.base import Dataset
from pyro_dgm.datasets.binarized_mnist import binarized_mnist
from pyro_dgm.datasets.digits import digits
from pyro_dgm.datasets.mnist import mnist

__all__ = ["DATASETS", "list", "load"]

DATASETS: dict[str, Callable[..., Dataset]] = {"digits": digits, "mnist": mnist, "binarized_mnist": binarized_mnist}


def list() -> builtins.list[str]:
    """The names that :func:`load` knows.

    Example::

        >>> from pyro_dgm import datasets
        >>> datasets.list()
        ['binarized_mnist', 'digits', 'mnist']
    """
    return sorted(DATASETS)


def load(name: str, **kwargs: Any) -> Dataset:
    """Load a data set by its name.

    :param name: one of :func:`list`.
    :param kwargs: what the set's own function takes.
    :raises ValueError: if there is no such set.

    Example::

        >>> from pyro_dgm import datasets
        >>> datasets.load("digits", binarize="threshold").train.unique()
        tensor([0., 1.])
    """
    if name not in DATASETS:
        raise ValueError(f"name must be one of {list()}, got {name!r}")
    return DATASETS[name](**kwargs)
