"""Names of files and folders on a disk that several processes, containers and machines may share."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, TypeVar

P = TypeVar("P", Path, Any)  # or a path of etils


def temporary_path(path: P) -> P:
    """Returns a path beside `path`, to write a file that then replaces the one at `path`.

    It is unique. The number of a process is not: containers and machines that share a disk count their processes
    independently.

    >>> temporary_path(Path("runs/config.json")) == temporary_path(Path("runs/config.json"))
    False
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def cache_folder(name: str) -> Path:
    """Returns the folder of one kind of files that can be computed again. It may not exist yet.

    >>> cache_folder("manifests").parts[-2:]
    ('jaxvision', 'manifests')
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxvision", name).expanduser()
