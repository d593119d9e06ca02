"""What a workdir holds besides checkpoints: the config that its run was started with, its result, and its lock."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jaxvision.disk import hold_lock, temporary_path
from jaxvision.errors import UserError
from jaxvision.weights.folder import check_export

_RESULT = "result.json"


def config_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as ``config.json`` holds it: nested dictionaries, with lists instead of tuples.

    >>> config_record({"model": {"name": "test_vit", "image_size": (224, 160)}})
    {'model': {'name': 'test_vit', 'image_size': [224, 160]}}
    """
    return json.loads(json.dumps(config, default=_json_value))


def _json_value(value: Any) -> Any:
    if hasattr(value, "to_dict"):  # a ConfigDict
        return value.to_dict()
    return value.item() if hasattr(value, "item") else str(value)


def check_config(workdir: str | Path, config: Mapping[str, Any], *, may_differ: Collection[str] = ()) -> bool:
    """Checks that a workdir is used with the config that its run was started with. Writes nothing.

    Args:
      workdir: folder of the run; it may not exist yet.
      config: nested, as for `config_record`.
      may_differ: dotted keys or sections that may change between the start and a resumption, such as
        ``("report", "checkpoint.keep")``.

    Returns:
      Whether a run has been started in the workdir before.

    Raises:
      UserError: the config differs (the message lists the keys, old -> new), or ``config.json`` cannot be read.

    Example:
      >>> import tempfile
      >>> workdir = tempfile.mkdtemp()
      >>> check_config(workdir, {"optim": {"learning_rate": 0.1}})
      False
      >>> write_config(workdir, {"optim": {"learning_rate": 0.1}})
      >>> check_config(workdir, {"optim": {"learning_rate": 0.2}})
      Traceback (most recent call last):
      ...
      jaxvision.errors.UserError: ...: got another config than this run was started with: optim.learning_rate 0.1 ->
      0.2. Set the values back, or choose another --workdir.
    """
    path = epath.Path(workdir) / "config.json"
    new = config_record(config)
    try:
        if not path.exists():
            return False
        old = json.loads(path.read_bytes())
    except ValueError as e:
        raise UserError(f"{path}: got invalid JSON ({e}). Remove the folder to start from scratch.") from e
    except OSError as e:
        raise UserError(f"cannot use the workdir {workdir}: {e.strerror or e}") from e
    if not isinstance(old, dict):
        raise UserError(
            f"{path}: got {old!r:.40}, expected the config of a run. Remove the folder to start from scratch."
        )
    changes = [
        f"{key} {change}"
        for key, change in _differences(_flat(old), _flat(new)).items()
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in may_differ)
    ]
    if changes:
        raise UserError(_changed_config_text(workdir, changes))
    return True


def _changed_config_text(workdir: str | Path, changes: list[str]) -> str:
    listed = "; ".join(changes[:10]) + (f"; and {len(changes) - 10} more" if len(changes) > 10 else "")
    has_result = (epath.Path(workdir) / "export" / "model.safetensors").exists()
    start_from = f" (--config.model.checkpoint_path={workdir} starts from this run's result)" if has_result else ""
    return (
        f"{workdir}: got another config than this run was started with: {listed}. "
        f"Set the values back, or choose another --workdir{start_from}."
    )


def write_config(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Writes ``config.json`` into a workdir, which is created if necessary. Only process 0 writes.

    Raises:
      UserError: the file cannot be written.
    """
    if jax.process_index() != 0:
        return
    path = epath.Path(workdir) / "config.json"
    try:
        (path.parent / _RESULT).unlink(missing_ok=True)  # of the run before, which this one continues
    except OSError as e:
        raise UserError(f"cannot use the workdir {workdir}: {e.strerror or e}") from e
    write_json(path, config_record(config))


def result_files(workdir: str | Path) -> dict[str, Path]:
    """Returns the files and folders of a run's result by name."""
    folder = Path(workdir)
    return {
        "report": folder / "report.html",
        "mistakes": folder / "mistakes.csv",
        "model": folder / "export",
        "metrics": folder / "metrics.jsonl",
    }


def write_result(workdir: str | Path, *, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Writes ``result.json``: a run is finished, and all its files are written. Only process 0 writes.

    Args:
      workdir: folder of the run.
      step: the training step of the exported model.
      split: the split that the result is measured on.
      metrics: the result.

    Raises:
      UserError: the file cannot be written.
    """
    if jax.process_index() == 0:
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}  # JSON has no NaN
        write_json(epath.Path(workdir) / _RESULT, {"step": step, "split": split, "metrics": finite})


def read_result(
    workdir: str | Path, config: Mapping[str, Any], *, log: Callable[[str], None] = print
) -> dict[str, Any] | None:
    """Returns what `write_result` wrote; None if the run is not finished, had another config, or lost a file.

    With several processes, all of them must call it, and it returns None on all of them if it does on one.

    Args:
      workdir: folder of the run; it may not exist yet.
      config: nested, as for `config_record`.
      log: called with a message if a file of the result is missing or damaged.
    """
    folder = epath.Path(workdir)
    try:
        recorded = json.loads((folder / "config.json").read_bytes())
        result = json.loads((folder / _RESULT).read_bytes())
        metrics = {name: math.nan if x is None else float(x) for name, x in result["metrics"].items()}
        result = {"step": int(result["step"]), "split": str(result["split"]), "metrics": metrics}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        result = recorded = None
    finished = result is not None and not _differences(_flat(recorded), _flat(config_record(config)))
    if finished and (lost := _lost_text(workdir)):
        log(f"the result of this run is incomplete, so it is evaluated and exported again: {lost}")
        finished = False
    if jax.process_count() > 1:
        finished = bool(np.all(multihost_utils.process_allgather(np.bool_(finished))))
    return result if finished else None


def _lost_text(workdir: str | Path) -> str:
    """Returns which file of a finished run is missing or damaged; empty if there is none."""
    lost = [str(path) for path in result_files(workdir).values() if not path.exists() or _is_empty(path)]
    if lost:
        return f"missing or empty: {', '.join(lost)}"
    try:
        check_export(Path(workdir) / "export")
    except UserError as e:
        return str(e)
    return ""


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file of a workdir, which is created if necessary. The file is either complete or missing."""
    unfinished = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(value, indent=2) + "\n")
        unfinished.replace(path)
    except OSError as e:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(f"cannot use the workdir {path.parent}: {e.strerror or e}") from e


@contextmanager
def lock(workdir: str | Path) -> Iterator[None]:
    """Locks a workdir, which is created if necessary, for this run.

    The operating system releases the lock when the process ends, however it ends. With several processes, process 0
    locks, and if it cannot, all of them raise. Does nothing on a file system without locks.

    Raises:
      UserError: another run holds the lock (the message names its process), or the workdir cannot be written to.

    Example:
      >>> import tempfile
      >>> workdir = tempfile.mkdtemp()
      >>> with lock(workdir), lock(workdir):
      ...     pass
      Traceback (most recent call last):
      ...
      jaxvision.errors.UserError: ... is in use by another run (process ... on ...). Stop it, wait until it ends, ...
    """
    with ExitStack() as stack:
        refusal = None
        if jax.process_index() == 0:
            try:
                _lock_until_closed(Path(workdir), stack)
            except UserError as e:
                refusal = e
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)):
            refusal = refusal or UserError(f"process 0 cannot use the workdir {workdir}. Look for its error.")
        if refusal is not None:
            raise refusal
        yield


def _lock_until_closed(workdir: Path, stack: ExitStack) -> None:
    """Locks a workdir until `stack` closes, or raises `UserError`."""
    file = workdir / ".lock"

    def refuse() -> NoReturn:
        raise UserError(
            f"{workdir} is in use by another run ({file.read_text(errors='replace').strip() or 'unknown'}). "
            f"Stop it, wait until it ends, or choose another --workdir."
        )

    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file.touch()
        stack.enter_context(hold_lock(file, refuse))
    except OSError as e:
        raise UserError(f"cannot use the workdir {workdir}: {e.strerror or e}") from e
    with suppress(OSError):  # a full disk raises an error later
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")


_ABSENT = object()


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    # An absent key equals None, so that a run resumes with a newer version, which may have more keys.
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: f"{_text(old.get(key, _ABSENT))} -> {_text(new.get(key, _ABSENT))}" for key in changed}


def _text(value: Any) -> str:
    return "(not set)" if value is _ABSENT else repr(value)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): config}
    return {key: value for name, part in config.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
