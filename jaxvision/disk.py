"""Files on a disk that several processes, containers and machines may share: names, locks and replacement."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

P = TypeVar("P", Path, Any)  # or a path of etils


def temporary_path(path: P) -> P:
    """Returns a path beside `path`, to write a file that then replaces the one at `path`.

    It is unique. The number of a process is not: containers and machines that share a disk count their processes
    independently.

    >>> temporary_path(Path("runs/config.json")) == temporary_path(Path("runs/config.json"))
    False
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; at the end, its file replaces the one at `path`.

    The folder is created. After an exception, the temporary file is removed and an earlier file at `path` is unchanged.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "a.txt")
      >>> with replaced(path) as temporary:
      ...     _ = temporary.write_text("complete")
      >>> path.read_text()
      'complete'
    """
    temporary = temporary_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Flushes a file to the disk. A network file system may report only here that its disk is full."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def cache_folder(name: str) -> Path:
    """Returns the folder of one kind of files that can be computed again. It may not exist yet.

    >>> cache_folder("manifests").parts[-2:]
    ('jaxvision', 'manifests')
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxvision", name).expanduser()


@contextmanager
def hold_lock(path: Path, when_busy: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Holds a lock that only one process can hold at a time. Waits for another process that holds it.

    The operating system releases the lock of a process that ends, however it ends.

    Args:
      path: the lock's file, which is created if necessary, with its folder. It stays.
      when_busy: called before waiting for another process. It may raise an exception instead.

    Yields:
      Whether the lock is held; False on Windows, on a file system without locks, and if the file cannot be created.

    Example:
      >>> import tempfile
      >>> with hold_lock(Path(tempfile.mkdtemp(), ".lock")) as is_held:
      ...     print(is_held)
      True
    """
    is_held = False
    with ExitStack() as stack:
        if fcntl is not None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    when_busy()
                    fcntl.flock(file, fcntl.LOCK_EX)
                is_held = True
        yield is_held
