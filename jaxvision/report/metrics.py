"""The numbers of a run, on disk: ``metrics.jsonl`` for programs, TensorBoard events for eyes."""

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
    """Appends what was measured to ``workdir/metrics.jsonl`` and ``workdir/tensorboard``.

    One line is one JSON object: ``step``, ``epoch``, ``split``, ``time`` (Unix seconds) and the values. A line is on
    disk when `write` returns, so that a run that is killed loses none. NaN and infinity, which JSON does not have,
    become ``null``; TensorBoard gets them as they are.

    Only process 0 writes; on the others every method does nothing.

    Args:
      workdir: folder of the run; made if missing.
      resume_step: the step that was restored. Lines and events past it are dropped, because they are about to be
        measured again. None: a new run; an existing file is emptied.
      tensorboard: also write TensorBoard events.

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
            from tensorboardX import SummaryWriter  # not above: it imports PyTorch wherever that is installed

            # A value that is not finite is told of by the run.
            logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
            # purge_step hides the events of that step and later ones. Those of a run before this one are all hidden.
            purge = 0 if resume_step is None else resume_step + 1
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, step: int, split: str, values: Mapping[str, Any], *, epoch: float | None = None) -> None:
        """Records `values` as measured after `step` steps.

        A (split, step) that is on file already, such as the last evaluation of a run that was started again when
        it was finished, is not written twice.

        Args:
          step: steps done.
          split: ``"train"``, or the name of what was evaluated.
          values: numbers by name; anything that `float` takes, so scalars of JAX and NumPy too (which are fetched
            from the device here).
          epoch: passes over the training data, such as 1.5.

        Raises:
          ValueError: a value is called as one of the line's own keys.
        """
        if clash := set(values) & set(_KEYS):
            raise ValueError(f"metrics cannot be called {sorted(clash)}; these are keys of every line")
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
        """Closes the files; may be called twice."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk `write` has told
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
    """Returns the lines of ``workdir/metrics.jsonl`` as dictionaries, in the order in which they were written.

    ``null`` is read as NaN, except in ``epoch``. A last line that was cut off in the middle (the machine lost power)
    is left out. No file: an empty list.
    """
    path = Path(workdir) / FILE
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and {"step", "split"} <= line.keys():
            lines.append({k: math.nan if v is None and k not in _KEYS else v for k, v in line.items()})
    return lines


def _json_line(line: Mapping[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
