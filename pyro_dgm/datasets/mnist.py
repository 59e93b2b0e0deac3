"""MNIST: 70 000 handwritten digits, 28 x 28, grey."""

from __future__ import annotations

import torch

from pyro_dgm.datasets.base import Dataset, as_float_images
from pyro_dgm.datasets.binarization import binarize_images
from pyro_dgm.datasets.cache import fetch
from pyro_dgm.datasets.idx import read_idx
from pyro_dgm.ops.arguments import check_count, check_seed

__all__ = ["mnist"]

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def _read(filename: str, shape: tuple[int, ...], download: bool) -> torch.Tensor:
    urls = [mirror + filename for mirror in MIRRORS]
    path = fetch("mnist", filename, urls=urls, sha256=FILES[filename], download=download)
    array = read_idx(path)
    if array.shape != shape:
        raise ValueError(f"{path}: expected shape {shape}, got {array.shape}")
    return torch.from_numpy(array)


def mnist(
    *,
    binarize: str | None = None,
    num_validation: int = 0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    download: bool = True,
) -> Dataset:
    """MNIST from its four original files: 60 000 images to train on and 10 000 to test on, grey values in [0, 1].

    :param binarize: ``None`` for grey values, ``"threshold"`` for 1 above one half, or ``"stochastic"`` for one draw of
        Bernoulli(grey value) fixed by ``seed``.  None of the three is the literature's *static* set, which is
        :func:`~pyro_dgm.datasets.binarized_mnist`; for *dynamic* binarisation leave it grey and see
        :class:`~pyro_dgm.datasets.DynamicBinarization`.
    :param num_validation: how many of the training images, the last ones in the file's order, to set aside as
        ``validation`` (10 000 is customary).
    :param seed: the draw of ``"stochastic"``.
    :param dtype: floating-point type of the images (torch's default).
    :param download: ``False`` to read the cache folder only.
    :raises FileNotFoundError: if a file is missing and cannot be downloaded.
    :raises ValueError: if a file is damaged, or an argument is out of range.

    Source: LeCun, Bottou, Bengio and Haffner (1998), *Gradient-based learning applied to document recognition*,
    doi:10.1109/5.726791.

    Example (downloads 11.6 MB on first use)::

        data = datasets.mnist(num_validation=10_000)
        data.train.shape  # (50000, 28, 28)
    """
    check_seed(seed, optional=False)
    check_count("num_validation", num_validation, 0)
    if num_validation >= 60_000:
        raise ValueError(f"num_validation must be below the 60000 images there are, got {num_validation}")
    pixels = _read("train-images-idx3-ubyte.gz", (60_000, 28, 28), download)
    labels = _read("train-labels-idx1-ubyte.gz", (60_000,), download).long()
    images = binarize_images(as_float_images(pixels, 255.0, dtype), binarize, seed)
    test = as_float_images(_read("t10k-images-idx3-ubyte.gz", (10_000, 28, 28), download), 255.0, dtype)
    cut = 60_000 - num_validation
    return Dataset(
        name="mnist",
        train=images[:cut],
        test=binarize_images(test, binarize, seed + 1),
        validation=images[cut:] if num_validation else None,
        train_labels=labels[:cut],
        test_labels=_read("t10k-labels-idx1-ubyte.gz", (10_000,), download).long(),
        validation_labels=labels[cut:] if num_validation else None,
        note=f"MNIST, {f'binarised ({binarize}, seed {seed}), not the static set' if binarize else 'grey'}",
    )
