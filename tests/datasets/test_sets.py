"""The sets themselves: shapes, splits, and that they are the published ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from pyro_dgm import datasets
from pyro_dgm.datasets.binarized_mnist import SPLITS, _as_text, read_amat, read_mat

Guard = Callable[[], AbstractContextManager[None]]


def test_digits(rng_unchanged: Guard) -> None:
    from sklearn.datasets import load_digits  # importing it for the first time moves Python's generator

    with rng_unchanged():
        data = datasets.digits(num_validation=100, seed=1)
    assert data.event_shape == (8, 8)
    assert {k: len(v) for k, v in data.splits()} == {"train": 1337, "test": 360, "validation": 100}
    assert data.train.dtype == torch.get_default_dtype()
    together = torch.cat([v for _, v in data.splits()]).double()
    assert together.min() == 0 and together.max() == 1
    # every image once, with its own label: compare with the set as scikit-learn gives it, as multisets
    bunch = load_digits()
    assert data.train_labels is not None and data.test_labels is not None and data.validation_labels is not None
    labels = torch.cat([data.train_labels, data.test_labels, data.validation_labels])
    ours = np.column_stack([together.flatten(1).numpy() * 16, labels.numpy()])
    theirs = np.column_stack([bunch.data, bunch.target])
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    assert len(ours) == len(theirs)


def test_digits_seed_and_dtype() -> None:
    first, same, other = datasets.digits(seed=0), datasets.digits(seed=0, dtype=torch.float64), datasets.digits(seed=1)
    assert torch.equal(first.train.double(), same.train) and same.train.dtype == torch.float64
    assert not torch.equal(first.train, other.train)
    assert first.validation is None and first.validation_labels is None


@pytest.mark.parametrize("method", ["threshold", "stochastic"])
def test_digits_binarized(method: str) -> None:
    data, grey = datasets.digits(binarize=method), datasets.digits()
    assert data.train.unique().tolist() == [0.0, 1.0]
    assert torch.equal(data.train, datasets.digits(binarize=method).train)
    assert method in data.note
    sure = (grey.train == 0) | (grey.train == 1)
    assert torch.equal(data.train[sure], grey.train[sure])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"binarize": "coin"}, ValueError, r"binarize must be None or one of .*'coin'"),
        ({"num_test": -1}, ValueError, "num_test must be an integer of at least 0"),
        ({"num_validation": 0.1}, TypeError, "num_validation must be an integer of at least 0"),
        ({"num_test": 1797}, ValueError, "must be below 1797"),
        ({"dtype": torch.uint8}, TypeError, "floating-point type, got torch.uint8"),
    ],
)
def test_digits_refuses(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        datasets.digits(**kwargs)


def test_registry() -> None:
    assert datasets.list() == ["binarized_mnist", "digits", "mnist"]
    assert (
        repr(datasets.load("digits", num_test=97)) == "Dataset('digits': train (1700, 8, 8), test (97, 8, 8), labels)"
    )
    with pytest.raises(ValueError, match=r"name must be one of \['binarized_mnist', 'digits', 'mnist'\], got 'cifar'"):
        datasets.load("cifar")


@pytest.mark.parametrize("name", ["mnist", "binarized_mnist"])
def test_absent_set_names_folder_and_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRO_DGM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"Put the file \S+ \(sha256 \w+\) into the folder {tmp_path}/{name}"):
        datasets.load(name, download=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs_data("mnist")
def test_mnist(data_dir: Path) -> None:
    data = datasets.mnist(num_validation=10_000, download=False)
    assert {k: tuple(v.shape) for k, v in data.splits()} == {
        "train": (50_000, 28, 28),
        "test": (10_000, 28, 28),
        "validation": (10_000, 28, 28),
    }
    assert data.train_labels is not None and data.test_labels is not None and data.validation_labels is not None
    assert data.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train.min() == 0 and data.train.max() == 1
    # the mean grey value of the 60 000 that is used to standardise MNIST everywhere
    assert torch.cat([data.train, data.validation]).double().mean().item() == pytest.approx(0.1307, abs=5e-5)  # type: ignore[list-item]


@pytest.mark.needs_data("mnist")
def test_mnist_binarized_is_repeatable(data_dir: Path) -> None:
    first = datasets.mnist(binarize="stochastic", seed=3, download=False).test
    assert first.unique().tolist() == [0.0, 1.0]
    assert torch.equal(first, datasets.mnist(binarize="stochastic", seed=3, download=False).test)
    with pytest.raises(ValueError, match="num_validation must be below the 60000 images there are, got 60000"):
        datasets.mnist(num_validation=60_000)


@pytest.mark.needs_data("binarized_mnist")
def test_binarized_mnist(data_dir: Path) -> None:
    data = datasets.binarized_mnist(download=False)
    assert {k: tuple(v.shape) for k, v in data.splits()} == {
        "train": (50_000, 28, 28),
        "test": (10_000, 28, 28),
        "validation": (10_000, 28, 28),
    }
    assert data.test.unique().tolist() == [0.0, 1.0]
    assert data.train_labels is None and "static" in data.note


@pytest.mark.needs_data("mnist", "binarized_mnist")
def test_static_set_is_a_draw_from_mnist(data_dir: Path) -> None:
    """A pixel is 1 about as often as its grey value says, and never where that is 0: the orientation is right.

    The static set's test images are MNIST's in the order of their class.
    """
    mnist = datasets.mnist(download=False)
    assert mnist.test_labels is not None
    grey = mnist.test[mnist.test_labels.argsort(stable=True)]
    drawn = datasets.binarized_mnist(download=False).test
    assert not drawn[grey == 0].any() and drawn[grey == 1].all()
    between = (grey > 0) & (grey < 1)
    p, b = grey[between].double(), drawn[between].double()
    standard_error = (p * (1 - p)).sum().sqrt() / len(p)
    assert abs((b - p).mean()) < 4 * standard_error


@pytest.mark.needs_data("binarized_mnist")
def test_text_and_matlab_files_hold_the_same_images(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published checksums are of text files; a set written out as such a file has that checksum and loads."""
    monkeypatch.setenv("PYRO_DGM_DATA", str(tmp_path))
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    images = read_mat(data_dir / "binarized_mnist" / "binarized_mnist_test.mat")
    text = _as_text(images)
    assert hashlib.sha256(text).hexdigest() == SPLITS["test"][1]
    (folder / "binarized_mnist_test.amat").write_bytes(text)
    np.testing.assert_array_equal(read_amat(folder / "binarized_mnist_test.amat"), images)
    # another draw in the right form is not the published set
    scipy.io.savemat(folder / "binarized_mnist_train.mat", {"X": 1 - images}, do_compression=True)
    with pytest.raises(ValueError, match="not the published ones of the split 'train'"):
        datasets.binarized_mnist(download=False)


def test_amat_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.amat"
    images = np.random.default_rng(0).integers(0, 2, (3, 784), dtype=np.uint8)
    path.write_bytes(_as_text(images))
    np.testing.assert_array_equal(read_amat(path), images)
    np.savetxt(path, images, fmt="%d", newline=" \r\n")  # trailing blanks and Windows line ends
    np.testing.assert_array_equal(read_amat(path), images)
    for text, message in ((b"0 1 2", "holds 0, 1 and white space only"), (b"01 1", "two digits"),
                          (b"0 1 0", "3 values"), (b"", "0 values")):  # fmt: skip
        path.write_bytes(text)
        with pytest.raises(ValueError, match=message):
            read_amat(path)


def test_mat_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    images = np.random.default_rng(0).integers(0, 2, (3, 784)).astype(np.float64)
    scipy.io.savemat(path, {"X": images})
    np.testing.assert_array_equal(read_mat(path), images)
    for content, message in (
        ({"Y": images}, "no variable X"),
        ({"X": images[:, 1:]}, r"shape \(N, 784\), got \(3, 783\)"),
        ({"X": images + 0.5}, "zeros and ones only"),
    ):
        scipy.io.savemat(path, content)
        with pytest.raises(ValueError, match=message):
            read_mat(path)
    path.write_bytes(b"not a MATLAB file, and long enough to have a header" * 10)
    with pytest.raises(ValueError, match="not a whole MATLAB file of version 5"):
        read_mat(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_mat_file_is_a_value_error(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    images = np.random.default_rng(0).integers(0, 2, (3, 784)).astype(np.uint8)
    scipy.io.savemat(path, {"X": images}, do_compression=compressed)
    whole = path.read_bytes()
    generator = np.random.default_rng(1)
    cuts = [whole[:n] for n in (0, 1, 100, 127, 128, 130, 140, 200, len(whole) // 2, len(whole) - 1)]
    flips = []
    for i in [*range(124 * 8, 200 * 8, 5), *generator.integers(0, len(whole) * 8, 60)]:
        data = bytearray(whole)
        data[i // 8] ^= 1 << i % 8
        flips.append(bytes(data))
    others = [bytes(len(whole)), b"\x80\x04\x95#\x00" + whole[5:], b"\x89HDF\r\n\x1a\n" + bytes(600)]
    refused = 0
    for content in cuts + flips + others:
        path.write_bytes(content)
        try:
            found = read_mat(path)
        except ValueError as error:
            if str(path) not in str(error):
                raise
            refused += 1
        else:  # a bit of the text in the header, or a pixel of a file without checksums
            assert found.shape == images.shape
    assert refused >= len(cuts) + len(others) + 20
