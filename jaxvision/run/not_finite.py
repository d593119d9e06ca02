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


class Watch:
    """Checks the metrics of every step, and lists each step that is not finite in ``not_finite.jsonl`` with its images.

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
        self._in_a_row = 0
        if distributed.is_main() and self._path.exists():
            listed = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in listed if _step_of(line) <= resume_step]
            write_atomically(self._path, "".join(kept))

    def check(self, recent: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
        """Returns the mean metrics of the finite steps.

        Args:
          recent: metrics of the latest steps, on the devices, with the ``index`` of each step's images. A step is
            checked once: its ``index`` is removed.
          step: number of the last of these steps.

        Raises:
          UserError: a step is not finite and `skip` is off, or it is the last of ten in a row.
        """
        fetched = jax.device_get([{key: x for key, x in values.items() if key != "index"} for values in recent])
        for i, values in enumerate(fetched):
            if "index" not in recent[i]:
                continue
            index = recent[i].pop("index")
            self._in_a_row = 0 if values["finite"] else self._in_a_row + 1
            if not values["finite"]:
                self._report(step - len(recent) + 1 + i, values, index)
        finite = [values for values in fetched if values["finite"]] or fetched[-1:]
        means = {key: float(np.mean([values[key] for values in finite])) for key in finite[0] if key != "finite"}
        return means | {"learning_rate": float(fetched[-1]["learning_rate"])}

    def _report(self, step: int, values: Mapping[str, Any], index: jax.Array) -> None:
        names = [self._image_name(int(n)) for n in _on_every_host(index)]
        if distributed.is_main():
            line = {"step": step, "loss": str(values["loss"]), "grad_norm": str(values["grad_norm"]), "images": names}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if not self._skip or self._in_a_row >= self.MAX_IN_A_ROW:
            check_finite(values, step)
        self._log(f"skipped step {step}: its loss or gradient is not finite (its images are listed in {self._path})")


def _step_of(line: str) -> float:
    """Returns the step of a line of ``not_finite.jsonl``; infinity for an incomplete line."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _on_every_host(x: jax.Array) -> np.ndarray:
    """Returns a global array on this host. All processes call it."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
