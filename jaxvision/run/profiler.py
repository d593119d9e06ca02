"""A trace of some steps of a run, for XProf or TensorBoard."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from jaxvision.errors import UserError

FOLDER = "profile"


def parse_steps(text: str) -> tuple[int, int]:
    """Returns the first and the last step of ``train.profile``.

    Raises:
      UserError: they are not two numbers in order.

    >>> parse_steps("10:19")
    (10, 19)
    """
    match = re.fullmatch(r"(\d+):(\d+)", str(text))
    first, last = (int(n) for n in match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"config.train.profile: got {text!r}, expected the first and the last step, such as '10:19'.")
    return first, last


class StepProfiler:
    """Writes a trace of the steps that ``train.profile`` names to ``profile/`` in the workdir.

    Args:
      steps: such as ``"10:19"``; None traces nothing.
      workdir: folder of the run.
    """

    def __init__(self, steps: str | None, workdir: Path):
        self._first, self._last = (0, 0) if steps is None else parse_steps(steps)
        self._folder, self._is_on = workdir / FOLDER, False

    def step(self, number: int) -> AbstractContextManager[Any]:
        """Returns the context of a step, counted from 1. The trace starts at the first one and marks each."""
        if self._first <= number <= self._last and not self._is_on:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def end(self, number: int, values: Any) -> str | None:
        """Ends the trace after its last step, and returns a message that says where it is.

        Args:
          number: of the step that was started last.
          values: arrays of that step, which it waits for.
        """
        if not self._is_on or number < self._last:
            return None
        jax.block_until_ready(values)
        return self.close()

    def close(self) -> str | None:
        """Ends the trace if there is one, and returns the message."""
        if not self._is_on:
            return None
        self._is_on = False
        jax.profiler.stop_trace()
        return f"wrote the profile to {self._folder}. To look at it: pip install xprof; xprof --logdir {self._folder}"
