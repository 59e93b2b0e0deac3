"""Downloads, against a real HTTP server on the loopback interface."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pyro_dgm.datasets.cache import data_folder, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every address; ``cut`` breaks off each answer after so many bytes of its body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None, int]] = []  # path, Range header, status
        self.content = CONTENT
        self.cut: list[int] = []
        self.ranges = True
        self.gzip_header = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        body, start, status = self.server.content, 0, 200
        if self.path.startswith("/missing"):
            body, status = b"gone", 404
        elif wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(body) else 416
        self.server.requests.append((self.path, wanted, status))
        self.send_response(status)
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(body)}")
            body = b""
        elif status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.server.gzip_header:
            self.send_header("Content-Encoding", "gzip")
        body = body[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status in (200, 206) and self.server.cut:
            body = body[: self.server.cut.pop(0)]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYRO_DGM_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "toy"


def get(server: Server, *paths: str, sha256: str = SHA256, download: bool = True) -> Path:
    return fetch("toy", "toy.bin", urls=[server.url + p for p in paths or ("toy.bin",)], sha256=sha256,
                 download=download)  # fmt: skip


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_download_then_cache(server: Server, folder: Path) -> None:
    path = get(server)
    assert path == folder / "toy.bin" and path.read_bytes() == CONTENT
    assert visible(folder) == ["toy.bin"]
    assert get(server) == path
    assert server.requests == [("/toy.bin", None, 200)]  # the second call asked nobody


def test_broken_transfer_is_continued_within_a_call(server: Server, folder: Path) -> None:
    server.cut = [100_000, 50_000]
    assert get(server).read_bytes() == CONTENT
    assert [(r, s) for _, r, s in server.requests] == [
        (None, 200),
        ("bytes=100000-", 206),
        ("bytes=150000-", 206),
    ]
    assert visible(folder) == ["toy.bin"]


def test_broken_transfer_is_continued_by_a_later_call(server: Server, folder: Path) -> None:
    server.cut = [100_000, 0]  # no progress on the second try: given up
    with pytest.raises(FileNotFoundError, match="broke off"):
        get(server)
    assert visible(folder) == ["toy.bin.part"]  # never a partial file under the final name
    assert (folder / "toy.bin.part").read_bytes() == CONTENT[:100_000]
    server.requests.clear()
    assert get(server).read_bytes() == CONTENT
    assert server.requests == [("/toy.bin", "bytes=100000-", 206)]
    assert visible(folder) == ["toy.bin"]


def test_server_without_ranges_starts_over(server: Server, folder: Path) -> None:
    server.ranges, server.cut = False, [100_000]
    assert get(server).read_bytes() == CONTENT
    assert [s for _, _, s in server.requests] == [200, 200]


@pytest.mark.parametrize(
    ("part", "statuses"),
    [
        (CONTENT, [416]),  # killed between the last byte and the renaming
        (CONTENT + b"more", [416, 200]),
        (b"another file's beginning", [206, 200]),  # the checksum finds it out: from the start
    ],
    ids=["whole", "longer", "another"],
)
def test_odd_partial_files(server: Server, folder: Path, part: bytes, statuses: list[int]) -> None:
    folder.mkdir(parents=True)
    (folder / "toy.bin.part").write_bytes(part)
    assert get(server).read_bytes() == CONTENT
    assert [s for _, _, s in server.requests] == statuses
    assert visible(folder) == ["toy.bin"]


def test_next_mirror(server: Server, folder: Path) -> None:
    assert get(server, "missing", "toy.bin").read_bytes() == CONTENT
    assert [p for p, _, _ in server.requests] == ["/missing", "/toy.bin"]


def test_wrong_content_is_refused(server: Server, folder: Path) -> None:
    server.content = CONTENT[::-1]
    with pytest.raises(FileNotFoundError, match="does not match the known hash"):
        get(server)
    assert visible(folder) == []


def test_published_bytes_arrive_as_they_are(server: Server, folder: Path) -> None:
    server.gzip_header = True  # some servers call a .gz file gzip-encoded; it must not be unpacked
    assert get(server).read_bytes() == CONTENT


def test_two_at_once_download_once(server: Server, folder: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(get(server))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(server.requests) == 1


def test_offline_names_the_folder_and_the_file(folder: Path) -> None:
    with Server() as closed:
        url = closed.url  # a port that nobody listens on once closed
    with pytest.raises(FileNotFoundError) as error:
        fetch("toy", "toy.bin", urls=[url + "toy.bin"], sha256=SHA256)
    message = str(error.value)
    for part in ("Put the file toy.bin", SHA256, f"folder {folder},", "PYRO_DGM_DATA", url, "ConnectionError"):
        assert part in message


def test_no_download_asks_nobody(server: Server, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download=False"):
        get(server, download=False)
    assert server.requests == []
    assert not folder.exists()


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PYRO_DGM_DATA", str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError, match="cannot write to"):
        get(server)


def test_damaged_file_in_the_cache(server: Server, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "toy.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"toy\.bin is not the published file.*remove it"):
        get(server)


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYRO_DGM_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("PYRO_DGM_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "pyro_dgm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data_folder() == tmp_path / "xdg" / "pyro_dgm"
