"""Atomic writing of small text files."""

from __future__ import annotations

import os
from pathlib import Path

from jaxvision.disk import replaced


def write_atomically(path: str | os.PathLike[str], text: str) -> Path:
    """Writes `text` to `path` atomically and returns the path.

    A reader sees either the old or the new file. If writing fails, the old file remains.

    Raises:
      OSError: the folder cannot be created or the disk is full.
    """
    path = Path(path)
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path
