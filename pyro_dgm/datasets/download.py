"""A downloader for pooch that continues an interrupted transfer."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

__all__ = ["ResumableDownloader"]


class ResumableDownloader:
    """Download over HTTP into a partial file that survives an interruption, and continue it by a range request.

    Pooch's own downloader starts over each time: what it has is in a temporary file that it removes.  This one keeps
    ``part`` until the transfer is whole, then moves it to the temporary file whose checksum pooch verifies.

    :param part: the partial file, in the folder of the file to be.
    :param timeout: seconds to wait for a connection, and for more bytes on one.
    """

    def __init__(self, part: Path, timeout: tuple[float, float] = (10.0, 30.0), chunk_size: int = 1 << 16) -> None:
        self.part = part
        self.timeout = timeout
        self.chunk_size = chunk_size
        #: whether the last transfer continued bytes of an earlier one
        self.resumed = False

    @property
    def size(self) -> int:
        """Bytes in the partial file."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> bool | None:
        import requests
        import urllib3

        if check_only:
            return bool(requests.head(url, timeout=self.timeout, allow_redirects=True).ok)
        have = self.size
        self.resumed = have > 0
        # "identity": a .gz file must arrive as the bytes that were published.
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout) as response:
            if response.status_code == 416 and _total(response) == have:  # nothing was left to send
                os.replace(self.part, output_file)
                return None
            if response.status_code == 416:  # longer than the file: not a beginning of it
                self.part.unlink()
                return self(url, output_file, pooch)
            response.raise_for_status()
            if response.status_code == 206 and _start(response) != have:
                raise ConnectionError(f"{url} sent {response.headers.get('Content-Range')!r}, asked for byte {have} on")
            if response.status_code != 206:  # the server knows no ranges and sends it all
                have, self.resumed = 0, False
            length = response.headers.get("Content-Length")
            with self.part.open("ab" if have else "wb") as file:
                try:
                    for chunk in response.raw.stream(self.chunk_size, decode_content=False):
                        file.write(chunk)
                except urllib3.exceptions.HTTPError as error:
                    raise ConnectionError(f"the transfer of {url} broke off: {error}") from error
            if length is not None and self.size != have + int(length):
                raise ConnectionError(f"the transfer of {url} broke off at {self.size} of {have + int(length)} bytes")
        os.replace(self.part, output_file)
        return None


def _start(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _total(response: Any) -> int | None:
    match = re.match(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None
