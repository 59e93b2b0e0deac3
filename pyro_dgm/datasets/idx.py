"""The IDX format that MNIST and sets made after it come in."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["read_idx"]

#: bytes that deflate makes of one at the most
MOST_OF_A_BYTE = 1032
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    r"""Read an IDX file, gzipped or not, into an array.

    The header is two zero bytes, one byte for the element type, one for the number of dimensions ``d``, then ``d``
    big-endian 32-bit sizes; the elements follow, last dimension fastest.

    :param path: the file.
    :return: an array in native byte order.
    :raises ValueError: if the file is no IDX file, or is longer or shorter than its header says.

    Example::

        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> read_idx(path)
        array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            return _read(file, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip file ({error}); remove it and get it again") from error


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")  # type: ignore[return-value]


def _read(file: BinaryIO, path: Path) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[0] or head[1] or head[2] not in _TYPES:
        raise ValueError(f"{path}: not an IDX file: it starts with {head.hex() or 'nothing'}")
    dtype, rank = np.dtype(_TYPES[head[2]]), head[3]
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(f"{path}: ends within its header of {4 + 4 * rank} bytes")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4", count=rank))
    expected = math.prod(shape) * dtype.itemsize
    # No more is unpacked than the header says, and no more is believed than such a file can hold.
    limit = MOST_OF_A_BYTE * path.stat().st_size
    if expected > limit:
        raise ValueError(
            f"{path}: shape {shape} of {dtype.name} needs {expected} bytes after the header, more than a file of "
            f"{path.stat().st_size} bytes can hold; remove it and get it again"
        )
    data = file.read(expected + 1)
    if len(data) != expected:
        more = "more" if len(data) > expected else str(len(data))
        raise ValueError(
            f"{path}: shape {shape} of {dtype.name} needs {expected} bytes after the header, got {more}; remove it and "
            "get it again"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
