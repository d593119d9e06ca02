"""Values in files in memory, which the processes of a machine pass to each other without copying large arrays.

The files have no name that could outlive the processes, however they end, and are not limited by ``/dev/shm``, of which
Docker gives only 64 MiB.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cloudpickle

_LARGE = 2**16  # bytes; smaller arrays are copied, so that they do not keep the whole file in memory
_ALIGNMENT = 64  # bytes, of arrays in a file


class Place(NamedTuple):
    """Where another process finds a file.

    Attributes:
      path: opens it until its `SharedFile` is closed, and may then lead to another file.
      identity: its inode.
    """

    path: str
    identity: int


class SharedFile:
    """A new file in memory, which is freed when no process uses it any more.

    Close it explicitly: a finalizer would swallow a Ctrl-C that comes while it runs.

    Attributes:
      file: its descriptor. Python's file objects would print a warning if a Ctrl-C comes while they are opened.
      place: where other processes find it until it is closed.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.file = os.memfd_create("shared")
            path = f"/proc/{os.getpid()}/fd/{self.file}"
        else:  # not Linux
            self.file, path = tempfile.mkstemp()
        self.place = Place(path, os.fstat(self.file).st_ino)

    def close(self) -> None:
        """Frees it, once the other processes have closed it too."""
        os.close(self.file)
        if not self.place.path.startswith("/proc/"):
            os.unlink(self.place.path)


@contextmanager
def open_shared(place: Place) -> Iterator[int]:
    """Opens a `SharedFile` of another process, and returns a descriptor.

    Raises:
      FileNotFoundError: it has been closed.
    """
    file = os.open(place.path, os.O_RDWR)
    try:
        if os.fstat(file).st_ino != place.identity:
            raise FileNotFoundError(place.path)
        yield file
    finally:
        os.close(file)


def dump(value: Any, file: int) -> tuple[int, ...]:
    """Writes a value to an empty file: its pickle, then its large arrays. Returns the sizes of these parts."""
    arrays: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if (view := buffer.raw()).nbytes < _LARGE:
            return True
        arrays.append(view)
        return False

    parts = [memoryview(cloudpickle.dumps(value, protocol=5, buffer_callback=is_small)), *arrays]
    with open(file, "wb", closefd=False) as writer:
        for part in parts:
            writer.write(part)
            writer.write(bytes(-part.nbytes % _ALIGNMENT))
    return tuple(part.nbytes for part in parts)


def load(file: int, sizes: tuple[int, ...]) -> Any:
    """Returns a value that `dump` wrote. Its large arrays are the pages of the file, copied where they are changed."""
    memory = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_COPY))
    parts = []
    for size in sizes:
        parts.append(memory[:size])
        memory = memory[size + -size % _ALIGNMENT :]
    return pickle.loads(parts[0], buffers=parts[1:])
