"""The metrics of a run on disk: ``metrics.jsonl`` for programs, and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxvision.report.files import write_atomically

FILE = "metrics.jsonl"
_KEYS = ("step", "epoch", "split", "time")


class MetricsWriter:
    """Appends metrics to ``workdir/metrics.jsonl`` and ``workdir/tensorboard``.

    Each line is a JSON object with ``step``, ``epoch``, ``split``, ``time`` (Unix seconds) and the metrics. `write`
    flushes its line, so a killed run loses none. JSON has no NaN or infinity: both become ``null`` there, and stay as
    they are in TensorBoard.

    Only process 0 writes. On other processes every method does nothing.

    Args:
      workdir: folder of the run; created if it does not exist.
      resume_step: the restored step. Lines and events after it are dropped, because training measures them again.
        None starts a new file.
      tensorboard: whether to write TensorBoard events.

    Example:
      >>> import tempfile
      >>> workdir = tempfile.mkdtemp()
      >>> with MetricsWriter(workdir, tensorboard=False) as metrics:
      ...     metrics.write(10, "train", {"loss": 2.25}, epoch=0.5)
      ...     metrics.write(20, "train", {"loss": 2.0}, epoch=1.0)
      >>> with MetricsWriter(workdir, resume_step=10, tensorboard=False) as metrics:
      ...     metrics.write(20, "train", {"loss": 1.75}, epoch=1.0)
      >>> [(line["step"], line["loss"]) for line in read_metrics(workdir)]
      [(10, 2.25), (20, 1.75)]
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, resume_step: int | None = None, tensorboard: bool = True
    ) -> None:
        self._file = None
        self._events = None
        self._written: set[tuple[str, int]] = set()
        if jax.process_index() != 0:
            return
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        kept = [] if resume_step is None else [line for line in read_metrics(folder) if line["step"] <= resume_step]
        self._written = {(line["split"], line["step"]) for line in kept}
        if path.exists():
            write_atomically(path, "".join(_json_line(line) for line in kept))
        self._file = path.open("a", encoding="utf-8", newline="\n")
        if tensorboard:
            from tensorboardX import SummaryWriter  # imported here because it imports PyTorch if that is installed

            # The trainer itself warns about values that are not finite.
            logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
            # TensorBoard hides the events from purge_step on. A new run hides all events of an earlier one.
            purge = 0 if resume_step is None else resume_step + 1
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, step: int, split: str, values: Mapping[str, Any], *, epoch: float | None = None) -> None:
        """Writes `values`, measured after `step` steps.

        Skips a (split, step) that the file already contains, such as the last evaluation of a finished run that is
        started again.

        Args:
          step: number of completed steps.
          split: ``"train"``, or the name of the evaluated split.
          values: numbers by name; anything that `float` accepts. Scalars on a device are fetched.
          epoch: passes over the training data, such as 1.5.

        Raises:
          ValueError: a metric has the name of one of the other keys of a line.
        """
        if clash := set(values) & set(_KEYS):
            reserved = ", ".join(_KEYS)
            raise ValueError(
                f"metrics: got the reserved names {sorted(clash)}. Rename them. The reserved names are {reserved}."
            )
        if self._file is None or (split, step) in self._written:
            return
        self._written.add((split, step))
        numbers = {name: float(x) for name, x in values.items()}
        now = time.time()
        line = {"step": int(step), "epoch": epoch, "split": split, "time": round(now, 3), **numbers}
        self._file.write(_json_line(line))
        self._file.flush()
        if self._events is not None:
            for name, x in numbers.items():
                self._events.add_scalar(f"{split}/{name}", x, global_step=int(step), walltime=now)

    def close(self) -> None:
        """Closes the files. Closing twice is allowed."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # `write` has already raised the error of a full disk
                self._file.close()
            self._file = None
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of ``workdir/metrics.jsonl`` as dictionaries, in file order.

    ``null`` is read as NaN, except in ``epoch``. A line that `MetricsWriter` did not write is skipped, such as an
    incomplete one, which a power failure can leave. Without a file the list is empty.
    """
    path = Path(workdir) / FILE
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if _is_written(line):
            lines.append({k: math.nan if v is None and k not in _KEYS else v for k, v in line.items()})
    return lines


def _is_written(line: Any) -> bool:
    """Returns whether a value has the form of the lines that `MetricsWriter` writes."""
    if not (isinstance(line, dict) and type(line.get("step")) is int and isinstance(line.get("split"), str)):
        return False
    return all(x is None or type(x) in (int, float) for name, x in line.items() if name != "split")


def _json_line(line: Mapping[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
