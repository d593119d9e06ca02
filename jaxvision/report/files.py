"""Atomic writing of small text files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], text: str) -> Path:
    """Writes `text` to `path` atomically and returns the path.

    A reader sees either the old or the new file. If writing fails, the old file remains.

    Raises:
      OSError: the folder does not exist or the disk is full.
    """
    path = Path(path)
    # In the same folder, because renaming is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private to its owner; give it the permissions of an ordinary new file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0o022)  # the mask can only be read by setting it
    os.umask(mask)
    return mask
