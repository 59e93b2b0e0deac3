"""The statically binarised MNIST that published log-likelihoods are computed on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from pyro_dgm.datasets.base import Dataset, as_float_images
from pyro_dgm.datasets.cache import data_folder, fetch
from pyro_dgm.datasets.mat import read_matrix

__all__ = ["binarized_mnist", "read_amat", "read_mat"]

HOME = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
#: number of images and sha256 of the published text file, split by split
SPLITS = {
    "train": (50_000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
    "valid": (10_000, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
    "test": (10_000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
}
PIXELS = 28 * 28


def read_amat(path: str | Path) -> np.ndarray:
    """Read an ``.amat`` text file: an image a line, 784 zeros and ones with a space between.

    :return: uint8, shape ``(N, 784)``.
    :raises ValueError: if there is anything else in the file, or a number of digits that is no multiple of 784.
    """
    text = np.frombuffer(Path(path).read_bytes(), np.uint8)
    digit = (text == ord("0")) | (text == ord("1"))
    if not (digit | np.isin(text, list(b" \t\r\n"))).all():
        raise ValueError(f"{path}: an .amat file of a binarised set holds 0, 1 and white space only")
    if (digit[1:] & digit[:-1]).any():
        raise ValueError(f"{path}: two digits without a space between")
    values = text[digit] - ord("0")
    if not len(values) or len(values) % PIXELS:
        raise ValueError(f"{path}: {len(values)} values, expected a multiple of {PIXELS}")
    return values.reshape(-1, PIXELS)


def read_mat(path: str | Path) -> np.ndarray:
    """Read a MATLAB file with the images as rows of ``X``.

    :return: uint8, shape ``(N, 784)``.
    :raises ValueError: if it is no MATLAB file of that content.
    """
    images = read_matrix(path, "X")
    if images.ndim != 2 or images.shape[1] != PIXELS:
        raise ValueError(f"{path}: X must have shape (N, {PIXELS}), got {images.shape}")
    if not np.isin(images, (0, 1)).all():
        raise ValueError(f"{path}: X must hold zeros and ones only")
    return np.ascontiguousarray(images, dtype=np.uint8)


def _as_text(images: np.ndarray) -> bytes:
    """The bytes of the published text file with these images."""
    text = np.full((len(images), 2 * images.shape[1]), ord(" "), np.uint8)
    text[:, 0::2] = images + ord("0")
    text[:, -1] = ord("\n")
    return text.tobytes()


def _read(split: str, dtype: torch.dtype | None, download: bool) -> torch.Tensor:
    count, sha256 = SPLITS[split]
    filename = f"binarized_mnist_{split}.amat"
    folder = data_folder() / "binarized_mnist"
    mat = folder / f"binarized_mnist_{split}.mat"
    if mat.is_file() and not (folder / filename).is_file():
        # MATLAB files carry the date of their making: it is the content that is held against the published checksum.
        images, path = read_mat(mat), mat
        if hashlib.sha256(_as_text(images)).hexdigest() != sha256:
            raise ValueError(f"{mat}: its images are not the published ones of the split {split!r}")
    else:
        path = fetch("binarized_mnist", filename, urls=[HOME + filename], sha256=sha256, download=download)
        images = read_amat(path)
    if images.shape != (count, PIXELS):
        raise ValueError(f"{path}: expected shape {(count, PIXELS)}, got {images.shape}")
    return as_float_images(torch.from_numpy(images), 1.0, dtype).reshape(-1, 28, 28)


def binarized_mnist(*, dtype: torch.dtype | None = None, download: bool = True) -> Dataset:
    """Statically binarised MNIST: each pixel drawn once, by Larochelle, and the same zeros and ones in every paper.

    50 000 images to train on, 10 000 to validate and 10 000 to test, without labels.  Published negative
    log-likelihoods of deep generative models on "binarised MNIST" are on this set or on dynamically binarised MNIST;
    the two differ by nats, so say which.

    The test images are in the order of their class (all zeros first), so a part of them has to be drawn at random; the
    other two parts are shuffled.

    The folder ``binarized_mnist`` of the cache may hold the published text files (``binarized_mnist_train.amat``,
    ``_valid``, ``_test``) or MATLAB files with the images in ``X`` (the same names ending in ``.mat``).

    :param dtype: floating-point type of the images (torch's default).
    :param download: ``False`` to read the cache folder only.
    :raises FileNotFoundError: if a file is missing and cannot be downloaded.
    :raises ValueError: if a file's images are not the published ones.

    Source: Larochelle and Murray (2011), *The neural autoregressive distribution estimator*, AISTATS; the draw follows
    Salakhutdinov and Murray (2008), ICML.

    Example (downloads 110 MB on first use)::

        data = datasets.binarized_mnist()
        data.train.shape, data.validation.shape  # (50000, 28, 28), (10000, 28, 28)
    """
    return Dataset(
        name="binarized_mnist",
        train=_read("train", dtype, download),
        validation=_read("valid", dtype, download),
        test=_read("test", dtype, download),
        note="MNIST, static binarisation (Larochelle)",
    )
