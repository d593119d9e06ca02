"""Steps whose loss or gradient is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvision.parallel import distributed
from jaxvision.report.files import write_atomically
from jaxvision.train.step import check_finite


class NonFiniteSteps:
    """Checks that every step is finite, and lists those that are not in ``not_finite.jsonl``, with their images.

    Args:
      workdir: folder of the run.
      resume_step: the step that was restored. Later steps are removed from the list, because they run again.
      skip: continue after such a step, but not after ten in a row.
      image_name: returns the name of an image from its index.
      log: called with a line for each skipped step.
    """

    MAX_IN_A_ROW = 10

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int,
        skip: bool,
        image_name: Callable[[int], str],
        log: Callable[[str], None],
    ):
        self._path = workdir / "not_finite.jsonl"
        self._skip, self._image_name, self._log = skip, image_name, log
        self._checked, self._in_a_row = resume_step, 0
        if distributed.is_main() and self._path.exists():
            listed = self._path.read_text(errors="replace").splitlines(keepends=True)
            kept = [line for line in listed if _step_of(line) <= resume_step]
            write_atomically(self._path, "".join(kept))

    def check(self, recent: Sequence[Mapping[str, Any]], step: int) -> None:
        """Checks those of the latest steps that it has not checked yet.

        Args:
          recent: metrics of the latest steps, on the devices, with the ``index`` of each step's images. Steps up to
            the one that was restored need no ``index``.
          step: number of the last of these steps.

        Raises:
          UserError: a step is not finite and `skip` is off, or it is the last of ten in a row.
        """
        numbers = range(step - len(recent) + 1, step + 1)
        for number, values, on_devices in zip(numbers, fetch_metrics(recent), recent, strict=True):
            if number <= self._checked:
                continue
            self._checked, self._in_a_row = number, 0 if values["finite"] else self._in_a_row + 1
            if not values["finite"]:
                self._report(number, values, on_devices["index"])

    def _report(self, step: int, values: Mapping[str, Any], index: jax.Array) -> None:
        names = [self._image_name(int(n)) for n in _on_every_host(index)]
        if distributed.is_main():
            line = {"step": step, "loss": str(values["loss"]), "grad_norm": str(values["grad_norm"]), "images": names}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if not self._skip or self._in_a_row >= self.MAX_IN_A_ROW:
            check_finite(values, step)
        self._log(f"skipped step {step}: its loss or gradient is not finite (its images are listed in {self._path})")


def fetch_metrics(recent: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the metrics of steps on the host, without the indices of their images."""
    return jax.device_get([{key: x for key, x in values.items() if key != "index"} for values in recent])


def mean_metrics(recent: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean metrics of the finite steps, or those of the last step if none is finite.

    The learning rate is that of the last step.

    Args:
      recent: metrics of one or more steps, as for `NonFiniteSteps.check`.
    """
    fetched = fetch_metrics(recent)
    finite = [values for values in fetched if values["finite"]] or fetched[-1:]
    means = {key: float(np.mean([values[key] for values in finite])) for key in finite[0] if key != "finite"}
    return means | {"learning_rate": float(fetched[-1]["learning_rate"])}


def _step_of(line: str) -> float:
    """Returns the step of a line of ``not_finite.jsonl``; infinity for a damaged line."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _on_every_host(x: jax.Array) -> np.ndarray:
    """Returns a global array on this host. All processes call it."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
