"""The IDX reader gives back what was written, and refuses everything else."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyro_dgm.datasets import read_idx

CODES = {"u1": 8, "i1": 9, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def encode(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


arrays = st.sampled_from(sorted(CODES)).flatmap(
    lambda code: hnp.arrays(np.dtype(code), hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


@given(arrays, st.booleans())
def test_round_trip(array: np.ndarray, zipped: bool) -> None:
    data = encode(array)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
        back = read_idx(path)
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)


GOOD = encode(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file: it starts with nothing"),
        (b"\x00\x00\x07\x01\x00\x00\x00\x00", "not an IDX file"),  # no such element type
        (b"\x89PNG\r\n", "not an IDX file: it starts with 89504e47"),
        (GOOD[:8], "ends within its header"),
        (GOOD[:-1], r"shape \(3, 4\) of uint8 needs 12 bytes after the header, got 11"),
        (GOOD + b"\x00", "got more"),
        (gzip.compress(GOOD, mtime=0)[:-4], "broken gzip file"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"\xff" * 20, "broken gzip file|not an IDX file"),
        (gzip.compress(GOOD, mtime=0) + b"\x01", "broken gzip file"),
        (GOOD[:4] + b"\xff" * 8 + GOOD[12:], "more than a file of 24 bytes can hold"),
    ],
)
def test_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def refusal(path: Path) -> bool:
    try:
        read_idx(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return True
    return False


@pytest.mark.parametrize("zipped", [False, True])
def test_a_flipped_bit_of_the_header_or_a_cut_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "data"
    whole = gzip.compress(GOOD, mtime=0) if zipped else GOOD
    refused = 0
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=str(path)):
            read_idx(path)
    for i in range(len(whole) * 8):
        data = bytearray(whole)
        data[i // 8] ^= 1 << i % 8
        path.write_bytes(data)
        refused += refusal(path)
    # What IDX itself has no checksum for: the pixels, and a header that says the same size in another way; of gzip's
    # header the time, the system and the like.
    assert refused >= (8 * len(whole) - 8 * 7 if zipped else 8 * 9)


def test_no_more_is_unpacked_than_the_header_says(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "bomb"
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes([0, 0, 8, 1]) + struct.pack(">I", 8))
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="needs 8 bytes after the header, got more"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 21
