"""The files of an original: downloaded from the first mirror that has them, resumed, and compared with their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError

from jaxvision.data.prepare.originals import File
from jaxvision.errors import UserError, disk_errors_as_user_errors
from jaxvision.network import download_part, first_to_answer
from jaxvision.report import show_progress


def download(file: File, folder: Path) -> Path:
    """Returns the path of a file of an original in `folder`, after downloading it unless it is there.

    Raises:
      OSError: no mirror can be reached, or none has the right file.
      UserError: the file is there and has another digest, or it cannot be written.
    """
    path = folder / file.name
    if path.is_file():
        if problem := _wrong_digest(path, file):
            raise UserError(f"{path}: {problem}. Remove it, and run the same command again.")
        return path
    part = _part(path)
    first = first_to_answer(file.urls)
    error: OSError | None = None
    with show_progress(f"download {file.name}", file.size, unit="bytes") as update:
        for url in (first, *(url for url in file.urls if url != first)):
            try:
                _download_and_resume(url, part, file, update)
            except OSError as e:
                error = OSError(f"{url}: {e}")
                continue
            if not (problem := _wrong_digest(part, file)):
                part.replace(path)
                return path
            part.unlink()
            error = OSError(f"{url}: {problem}")
        assert error is not None
        raise error


def downloaded_bytes(file: File, folder: Path) -> int:
    """Returns how much of a file of an original is in `folder`, complete or from an interrupted download."""
    path = folder / file.name
    return _size(path) or _size(_part(path))


def _download_and_resume(url: str, part: Path, file: File, update: Callable[[int], object]) -> None:
    """Downloads a file. If the connection is closed, resumes as long as each connection adds bytes."""
    while file.size is None or _size(part) != file.size:  # else an earlier process ended after the last byte
        before = _size(part)
        try:
            with disk_errors_as_user_errors(part):
                part.parent.mkdir(parents=True, exist_ok=True)
                return download_part(url, part, update)
        except OSError as e:
            if isinstance(e, HTTPError) or _size(part) <= before:
                raise


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _wrong_digest(path: Path, file: File) -> str:
    """Returns what is wrong with a file's digest; empty if nothing is."""
    algorithm = {64: "sha256", 32: "md5"}[len(file.digest)]
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, algorithm).hexdigest()
    return "" if digest == file.digest else f"got the {algorithm} {digest}, expected {file.digest}"
