"""What a workdir holds besides checkpoints: the config that it was started with, and the lock of one run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jaxvision.checkpoint import plain
from jaxvision.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def check_config(workdir: str | Path, config: Mapping[str, Any], *, may_differ: Collection[str] = ()) -> bool:
    """Sees to it that a workdir is gone on with under the config that it was started with.

    `write_config` wrote that one. Nothing is written here.

    Args:
      workdir: folder of the run, which need not be there yet.
      config: nested; anything that JSON can hold.
      may_differ: dotted keys, or sections, whose change does no harm, such as ``("report", "checkpoint.keep")``.

    Returns:
      Whether the run had been started before.

    Raises:
      UserError: the config differs (the message shows each key, old -> new), or the file cannot be read.

    Example:
      >>> import tempfile
      >>> workdir = tempfile.mkdtemp()
      >>> check_config(workdir, {"optim": {"learning_rate": 0.1}})
      False
      >>> write_config(workdir, {"optim": {"learning_rate": 0.1}})
      >>> check_config(workdir, {"optim": {"learning_rate": 0.2}})
      Traceback (most recent call last):
      ...
      jaxvision.errors.UserError: ... was started with another config: optim.learning_rate 0.1 -> 0.2; ...
    """
    path = epath.Path(workdir) / "config.json"
    new = plain(config)
    try:
        old = json.loads(path.read_text()) if path.exists() else None
        if old is not None:
            differences = {
                key: change
                for key, change in _differences(_flat(old), _flat(new)).items()
                if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in may_differ)
            }
            if differences:
                changes = "; ".join(f"{key} {change}" for key, change in list(differences.items())[:10])
                changes += f"; and {len(differences) - 10} more" if len(differences) > 10 else ""
                result = epath.Path(workdir) / "export" / "model.safetensors"
                begin = f" (with model.checkpoint_path={result} it begins with this one's result)"
                raise UserError(
                    f"{workdir} was started with another config: {changes}; "
                    f"take another workdir{begin if result.exists() else ''}, or set the values back"
                )
    except json.JSONDecodeError as e:
        raise UserError(f"{path} is not JSON ({e}); remove the folder to start afresh") from e
    except OSError as e:
        raise UserError(f"cannot use the workdir {workdir}: {e.strerror or e}") from e
    return old is not None


def write_config(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Writes ``config.json`` into a workdir, which is made if need be; only process 0 does.

    Raises:
      UserError: the file cannot be written.
    """
    if jax.process_index() != 0:
        return
    path = epath.Path(workdir) / "config.json"
    beside = path.parent / "config.json.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and moved into place: there is a whole file or none.
        beside.write_text(json.dumps(plain(config), indent=2) + "\n")
        beside.replace(path)
    except OSError as e:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UserError(f"cannot use the workdir {workdir}: {e.strerror or e}") from e


@contextmanager
def lock(workdir: str | Path) -> Iterator[None]:
    """Keeps a workdir, which is made if need be, for this run alone.

    The system lets go of it when the process ends, in whatever way. Of several processes process 0 asks, and if it is
    refused all of them are. Where the file system knows no locks nothing is kept, and nothing refused.

    Raises:
      UserError: another run has it; the message says which. Or the workdir cannot be written to.

    Example:
      >>> import tempfile
      >>> workdir = tempfile.mkdtemp()
      >>> with lock(workdir), lock(workdir):
      ...     pass
      Traceback (most recent call last):
      ...
      jaxvision.errors.UserError: ... is in use by another run (process ... on ...); wait for its end or stop it, ...
    """
    with ExitStack() as stack:
        refusal = None
        if jax.process_index() == 0:
            try:
                _take(Path(workdir), stack)
            except UserError as e:
                refusal = e
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)):
            refusal = refusal or UserError(f"process 0 cannot have the workdir {workdir}, and says why")
        if refusal is not None:
            raise refusal
        yield


def _take(workdir: Path, stack: ExitStack) -> None:
    """Locks a workdir until `stack` ends, or raises `UserError`."""
    if fcntl is None:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((workdir / ".lock").open("a+"))
    except OSError as e:
        raise UserError(f"cannot use the workdir {workdir}: {e.strerror or e}") from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        file.seek(0)
        raise UserError(
            f"{workdir} is in use by another run ({file.read().strip() or 'unknown'}); wait for its end or stop "
            f"it, or take another workdir"
        ) from e
    except OSError:  # some network file systems
        pass
    with suppress(OSError):  # a full disk will be told of soon enough
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())


_ABSENT = object()


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    # A key that is not there is None: runs go on with a version that has more keys.
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: f"{_shown(old.get(key, _ABSENT))} -> {_shown(new.get(key, _ABSENT))}" for key in changed}


def _shown(value: Any) -> str:
    return "(not set)" if value is _ABSENT else repr(value)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): config}
    return {key: value for name, part in config.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
