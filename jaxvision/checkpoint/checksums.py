"""Checksums of a checkpoint: written last, so that they also mark the checkpoint as complete."""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jax
from etils import epath

from jaxvision.disk import temporary_path

FILE = "checksums.json"
_ERROR = f"{FILE}.error"  # written by a process that fails, so that the others do not wait for it
TIMEOUT = 600


class DamagedCheckpoint(Exception):
    """One checkpoint cannot be read. An older one may be intact."""


class OtherProcessTimeout(TimeoutError):
    """Another process has not written its part in time. A disk that answers too late raises a plain `TimeoutError`."""


def has_checksums(folder: epath.Path) -> bool:
    """Returns whether the checkpoint in `folder` was written to its end."""
    return (folder / FILE).exists()


def write_checksums(folder: epath.Path) -> None:
    """Writes ``checksums.json`` into a complete checkpoint: the path, size and CRC-32 of each of its files.

    All processes call it, and each reads the files that it has written. They leave their results in the checkpoint's
    folder, where process 0 collects them, because a collective operation could meet those of the train step. Each
    process returns once ``checksums.json`` exists.

    Args:
      folder: the checkpoint. Files that lie directly in it have no checksum.

    Raises:
      OSError: a file cannot be read or written, in this process or another.
      OtherProcessTimeout: another process has not finished within ten minutes.
    """
    # Orbax verifies neither its JSON files nor the bytes of arrays, so a flipped bit there would go unnoticed.
    process, count = jax.process_index(), jax.process_count()
    parts = [folder / f"{FILE}.{i}-of-{count}" for i in range(count)]
    try:
        own = _checksums_of(folder, process, count)
        if count == 1:
            _write_json(folder / FILE, own)
            return
        _write_json(parts[process], own)
        if process == 0:
            for other, part in enumerate(parts):
                _wait_for(part, parts[0], f"process {other} has not written its checksums")
            _write_json(
                folder / FILE, {name: crc for part in parts for name, crc in json.loads(part.read_text()).items()}
            )
        else:
            _wait_for(folder / FILE, parts[process], f"process 0 has not written {FILE}")
        with suppress(OSError):
            parts[process].unlink()
    except OtherProcessTimeout:
        raise
    except Exception as e:
        if count > 1:
            with suppress(OSError):  # process 0 may have removed the folder
                _write_json(folder / _ERROR, str(e))
        raise


def _checksums_of(folder: epath.Path, process: int, count: int) -> dict[str, str]:
    """Returns the checksums of the files that one of `count` processes has written."""
    items = [item for item in folder.iterdir() if item.is_dir()]
    names = sorted(str(file.relative_to(folder)) for item in items for file in _files(item))
    return {name: _checksum(folder / name) for i, name in enumerate(names) if _writer(name, i, count) == process}


def _writer(name: str, i: int, count: int) -> int:
    """Returns the process that has written a file. Files that Orbax does not mark are shared out."""
    marked = re.search(r"\bprocess_(\d+)\b", name)
    return (int(marked[1]) if marked else i) % count


def _write_json(path: epath.Path, value: Any) -> None:
    # Renamed into place, because a truncated file of checksums would make an intact checkpoint look damaged.
    unfinished = temporary_path(path)
    try:
        unfinished.write_text(json.dumps(value))
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise


def _wait_for(path: epath.Path, own: epath.Path, timeout_message: str) -> None:
    """Waits for a file that another process writes beside `own`; raises `OSError` if a process has failed."""
    error = own.parent / _ERROR
    end = time.monotonic() + TIMEOUT
    while not path.exists():
        if error.exists():
            raise OSError(json.loads(error.read_text()))
        if not own.exists():  # process 0 has removed the checkpoint
            raise FileNotFoundError(f"another process could not write {own.parent}")
        if time.monotonic() > end:
            raise OtherProcessTimeout(f"{timeout_message} within {TIMEOUT} seconds")
        time.sleep(0.1)


def verify_checksums(folder: epath.Path) -> None:
    """Checks the files of a checkpoint against its checksums. Each of several processes checks its share of the files.

    Raises:
      DamagedCheckpoint: a file is missing or has changed, or the checksums cannot be read.
    """
    try:
        wanted = dict(json.loads((folder / FILE).read_text()))
    except ValueError as e:
        raise DamagedCheckpoint(f"{FILE} is damaged") from e
    if not wanted:
        raise DamagedCheckpoint(f"{FILE} is damaged")
    for name in sorted(wanted)[jax.process_index() :: jax.process_count()]:
        if not (folder / name).exists():
            raise DamagedCheckpoint(f"{name} is missing")
        if _checksum(folder / name) != wanted[name]:
            raise DamagedCheckpoint(f"{name} is damaged")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)


def _checksum(file: epath.Path) -> str:
    size, crc = 0, 0
    with file.open("rb") as f:
        while block := f.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return f"{size}:{crc:08x}"
