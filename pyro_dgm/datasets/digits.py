"""Optical recognition of handwritten digits: 1 797 images, 8 x 8, which scikit-learn carries along."""

from __future__ import annotations

import random

import torch

from pyro_dgm.datasets.base import Dataset, as_float_images
from pyro_dgm.datasets.binarization import binarize_images
from pyro_dgm.ops.arguments import check_count, check_seed

__all__ = ["digits"]


def digits(
    *,
    binarize: str | None = None,
    num_test: int = 360,
    num_validation: int = 0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """The 1 797 handwritten digits that come with scikit-learn: no download, so the default of examples and tests.

    Each pixel counts the ink in a 4 x 4 block of a 32 x 32 bitmap (0 to 16, here divided by 16).

    :param binarize: ``None`` for grey values; ``"threshold"`` for 1 above one half; ``"stochastic"`` for one draw of
        Bernoulli(grey value) fixed by ``seed``.  For a fresh draw each time see
        :class:`~pyro_dgm.datasets.DynamicBinarization`.
    :param num_test: images set aside as ``test``.
    :param num_validation: images set aside as ``validation``.
    :param seed: which images go where, and the draw of ``"stochastic"``.
    :param dtype: floating-point type of the images (torch's default).
    :raises ValueError: if nothing would be left to train on, or ``binarize`` is unknown.

    Source: Alpaydin and Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49 (CC BY 4.0).

    Example::

        >>> from pyro_dgm import datasets
        >>> data = datasets.digits(num_validation=200)
        >>> data
        Dataset('digits': train (1237, 8, 8), test (360, 8, 8), validation (200, 8, 8), labels)
        >>> data.train.min().item(), data.train.max().item()
        (0.0, 1.0)
    """
    from sklearn.datasets import load_digits  # heavy to import

    for name, value in (("num_test", num_test), ("num_validation", num_validation)):
        check_count(name, value, 0)
    check_seed(seed, optional=False)
    bunch = load_digits()
    total = len(bunch.target)
    if num_test + num_validation >= total:
        raise ValueError(
            f"num_test + num_validation must be below {total}, the size of the set; got {num_test + num_validation}"
        )
    images = as_float_images(torch.from_numpy(bunch.images), 16.0, dtype)
    images = binarize_images(images, binarize, seed)
    labels = torch.from_numpy(bunch.target).long()

    order = list(range(total))
    random.Random(seed).shuffle(order)  # Python keeps this stream the same over its versions
    rows = torch.tensor(order)
    test, validation, train = rows.tensor_split([num_test, num_test + num_validation])
    return Dataset(
        name="digits",
        train=images[train],
        test=images[test],
        validation=images[validation] if num_validation else None,
        train_labels=labels[train],
        test_labels=labels[test],
        validation_labels=labels[validation] if num_validation else None,
        note=f"scikit-learn's 8 x 8 digits, {f'binarised ({binarize})' if binarize else 'grey'}, split seed {seed}",
    )
