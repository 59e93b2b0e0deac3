"""MATLAB's files of version 5, as far as a numeric matrix goes.

SciPy's reader trusts what a file says of itself, and a damaged one can end the process; this one believes nothing.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pyro_dgm.datasets.idx import MOST_OF_A_BYTE

__all__ = ["read_matrix"]

_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
#: classes of arrays: double, single, and integers of 8 to 64 bits
_NUMERIC = range(6, 16)
_COMPLEX = 0x800


class _Broken(Exception):
    """What is wrong with a file."""


def read_matrix(path: str | Path, name: str) -> np.ndarray:
    """Read a real numeric array by its name.

    :param path: a MATLAB file of version 5 (``save -v6`` or ``-v7``, or :func:`scipy.io.savemat`).
    :param name: the variable's name.
    :returns: the array, in the type that it is stored in.
    :raises ValueError: naming the file, if it is no such file, is damaged, or has no numeric array of that name.

    Source: The MathWorks, "MAT-File Format", chapter 1.

    Example::

        >>> import pathlib, tempfile, scipy.io
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.mat"
        >>> scipy.io.savemat(path, {"X": [[1.0, 2.0]]})
        >>> read_matrix(path, "X")
        array([[1., 2.]])
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        order = _byte_order(data)
        for kind, content in _elements(data[128:], order, whole=True):
            if kind == _COMPRESSED:
                unpacked = list(_elements(_unpacked(content), order, whole=True))
                if len(unpacked) != 1:
                    raise _Broken("a compressed element holds not one element")
                kind, content = unpacked[0]
            if kind == _MATRIX:
                found = _matrix(content, order, name)
                if found is not None:
                    return found
    except (_Broken, zlib.error, struct.error) as error:
        raise ValueError(
            f"{path}: not a whole MATLAB file of version 5 ({error}); remove it and get it again"
        ) from error
    raise ValueError(f"{path}: no variable {name} in it")


def _byte_order(data: bytes) -> str:
    if len(data) < 136:
        raise _Broken(f"it has {len(data)} bytes, its header alone has 128")
    for mark, order in ((b"IM", "<"), (b"MI", ">")):
        if data[126:128] == mark and struct.unpack(order + "H", data[124:126])[0] == 0x0100:
            return order
    raise _Broken("its header has not the mark of version 5")


def _elements(data: bytes, order: str, whole: bool = False) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element in a row."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise _Broken("it ends within the head of an element")
        kind, size = struct.unpack(order + "II", data[at : at + 8])
        if kind >> 16:  # a small one, of up to four bytes, in its own head
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise _Broken("a small element has more than four bytes")
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        if size > len(data) - at - 8:
            raise _Broken(f"an element of {size} bytes has {len(data) - at - 8}")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if whole and not data:
        raise _Broken("it holds nothing")


def _unpacked(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(content, MOST_OF_A_BYTE * len(content))
    if not stream.eof:
        raise _Broken("a compressed element is cut short")
    return data


def _matrix(content: bytes, order: str, name: str) -> np.ndarray | None:
    """The array of a matrix element, if it has the name."""
    parts = []
    for part in _elements(content, order):
        parts.append(part)
        if len(parts) == 4:  # flags, dimensions, name, real part
            break
    if len(parts) < 3 or [kind for kind, _ in parts[:3]] != [6, 5, 1] or len(parts[0][1]) != 8 or len(parts[1][1]) % 4:
        raise _Broken("an array has not the parts that it should")
    if parts[2][1] != name.encode("ascii"):
        return None
    flags = struct.unpack(order + "I", parts[0][1][:4])[0]
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX or len(parts) < 4 or parts[3][0] not in _TYPES:
        raise _Broken(f"{name} is no array of real numbers")
    shape = tuple(int(n) for n in np.frombuffer(parts[1][1], order + "i4"))
    dtype = np.dtype(order + _TYPES[parts[3][0]])
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(parts[3][1]):
        raise _Broken(f"{name} of shape {shape} has {len(parts[3][1])} bytes of {dtype.name}")
    return np.frombuffer(parts[3][1], dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="))
