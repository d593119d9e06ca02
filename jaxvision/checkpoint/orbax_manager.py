"""Orbax's checkpoint manager, adapted: tolerant of damaged metrics, quiet, and without its own signal handling."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp


class OrbaxManager(ocp.CheckpointManager):
    """Orbax's manager, which also opens a folder that holds a checkpoint with damaged metrics.

    Args:
      *args: of Orbax's manager.
      log: called with a line for each checkpoint with damaged metrics.
      **options: of Orbax's manager.
    """

    def __init__(self, *args: Any, log: Callable[[str], None], **options: Any):
        self._log, self._reported = log, set[int]()
        super().__init__(*args, **options)

    def reached_preemption(self, step: int) -> bool:
        # JAX reports a SIGTERM once, to the first caller that asks. That caller has to be the run, which would
        # otherwise train on.
        return False

    def metrics(self, step: int) -> Any:
        try:
            found = super().metrics(step)
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict) and all(isinstance(x, int | float) for x in found.values()):
            return found
        if step not in self._reported and (self.directory / str(step) / "metrics").exists():
            self._reported.add(step)
            self._log(f"the metrics of the checkpoint of step {step} are damaged; it cannot be chosen as the best")
        return {}


def short_reason(error: BaseException) -> str:
    """Returns an error of the file system, of TensorStore or of Orbax in one line.

    Example:
      >>> short_reason(OSError(28, "No space left on device"))
      'no space left on the disk'
    """
    text = str(error)
    for sign, words in (
        ("No space left", "no space left on the disk"),
        ("ENOSPC", "no space left on the disk"),
        ("Disk quota", "disk quota exceeded"),
        ("EDQUOT", "disk quota exceeded"),
    ):
        if sign in text:
            return words
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def silence_orbax() -> None:
    """Keeps Orbax's log records and tracebacks off the console. `Checkpoints` raises its failures as errors."""
    for logger in (logging.getLogger("absl"), logging.getLogger("asyncio")):
        if not any(isinstance(f, _DropOrbaxRecords) for f in logger.filters):
            logger.addFilter(_DropOrbaxRecords())


class _DropOrbaxRecords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        # asyncio's message names the task that failed and the task's file.
        return "orbax" not in record.pathname and not (record.name == "asyncio" and "orbax" in record.getMessage())
