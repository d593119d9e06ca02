"""Checksums of a checkpoint: written last, so that they also mark the checkpoint as complete."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator

import jax
from etils import epath

FILE = "checksums.json"


class DamagedCheckpoint(Exception):
    """One checkpoint cannot be read. An older one may be intact."""


def has_checksums(folder: epath.Path) -> bool:
    """Returns whether the checkpoint in `folder` was written to its end."""
    return (folder / FILE).exists()


def write_checksums(folder: epath.Path) -> None:
    """Writes ``checksums.json`` into a complete checkpoint: the path, size and CRC-32 of each of its files.

    Args:
      folder: the checkpoint. Files that lie directly in it have no checksum.
    """
    # Orbax verifies neither its JSON files nor the bytes of arrays, so a flipped bit there would go unnoticed.
    files = [file for item in folder.iterdir() if item.is_dir() for file in _files(item)]
    checksums = {str(file.relative_to(folder)): _checksum(file) for file in sorted(files)}
    # Renamed into place, because a truncated file of checksums would make an intact checkpoint look damaged.
    unfinished = folder / f"{FILE}.tmp"
    unfinished.write_text(json.dumps(checksums))
    unfinished.replace(folder / FILE)


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
