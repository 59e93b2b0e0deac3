"""The IDX format that MNIST and sets made after it come in."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

__all__ = ["read_idx"]

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
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: broken gzip file ({error})") from error
    if len(data) < 4 or data[0] or data[1] or data[2] not in _TYPES:
        raise ValueError(f"{path}: not an IDX file: it starts with {data[:4].hex() or 'nothing'}")
    dtype, rank = np.dtype(_TYPES[data[2]]), data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise ValueError(f"{path}: ends within its header of {start} bytes")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=rank, offset=4))
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - start != expected:
        raise ValueError(
            f"{path}: shape {shape} of {dtype.name} needs {expected} bytes after the header, got {len(data) - start}"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
