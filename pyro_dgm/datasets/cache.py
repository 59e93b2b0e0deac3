"""Where data files live, and how one that is missing gets there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pyro_dgm.datasets.download import ResumableDownloader

__all__ = ["ATTEMPTS", "check_sha256", "data_folder", "fetch"]

#: how often one address is tried while each try brings new bytes
ATTEMPTS = 5


def data_folder() -> Path:
    """The folder of all data sets: ``PYRO_DGM_DATA`` where it is set, else ``pyro_dgm`` in the user's cache folder.

    Each set has a folder of its own name in it, with the files under the names they are published with, so that files
    already on a machine (or on one without a network) need only be put there.
    """
    chosen = os.environ.get("PYRO_DGM_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_dgm"


def check_sha256(path: Path, sha256: str) -> None:
    """Raise ``ValueError`` unless the file has the checksum."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the published file: its sha256 is {found}, expected {sha256}; "
            "remove it to have it downloaded again"
        )


def fetch(dataset: str, filename: str, *, urls: Sequence[str], sha256: str, download: bool = True) -> Path:
    """The path of a data file, downloaded first where it is missing.

    A transfer goes to ``<filename>.part``, which a later call continues; the file gets its name only once it is whole
    and its checksum is right.  Two processes that want the same file do not download it twice.

    :param dataset: the set's name, which is its folder's.
    :param filename: the file's published name.
    :param urls: where to get it, tried in order.
    :param sha256: its checksum; a file that is there already is held against it too.
    :param download: ``False`` to only look.
    :raises FileNotFoundError: if the file is missing and cannot be downloaded; the message names the folder to put it
        in.
    :raises ValueError: if the file in the folder has another checksum.
    """
    path = data_folder() / dataset / filename
    if not path.is_file():
        failures = ["download=False"] if not download else _download(path, urls, sha256)
        if failures is not None:
            raise FileNotFoundError(
                f"{filename} of the data set {dataset!r} is missing and could not be downloaded. "
                f"Put the file {filename} (sha256 {sha256}) into the folder {path.parent}, "
                f"or set PYRO_DGM_DATA to a folder that has it as {dataset}/{filename}. "
                f"Tried: {'; '.join(failures)}. Published at: {', '.join(urls)}"
            )
    check_sha256(path, sha256)
    return path


def _download(path: Path, urls: Sequence[str], sha256: str) -> list[str] | None:
    """``None`` when the file is there, else what went wrong at each address."""
    import pooch  # heavy to import
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except OSError as error:
        return [f"cannot write to {path.parent} ({error})"]
    failures = []
    try:
        if path.is_file():  # another process was first
            return None
        downloader = ResumableDownloader(path.with_name(path.name + ".part"))
        for url in urls:
            for _ in range(ATTEMPTS):
                size = downloader.size
                failure: Exception
                try:
                    pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent, downloader=downloader)
                    return None
                except ValueError as error:  # the checksum; what an old partial file began may be to blame
                    failure = error
                    again = downloader.resumed
                except OSError as error:  # all of requests' errors are
                    failure = error
                    again = downloader.size > size
                if not again:
                    break
            failures.append(f"{url} ({type(failure).__name__}: {failure})")
    finally:
        lock.release()
    return failures
