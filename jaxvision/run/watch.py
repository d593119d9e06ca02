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
    """Looks at the metrics of each step. A step that was not finite goes into ``not_finite.jsonl``, with its images.

    Args:
      workdir: folder of the run.
      resume_step: the step that was restored. What is listed past it will happen again, and is dropped.
      skip: go on after such a step, though not after ten in a row.
      images: what an image is called.
      log: called with a line for each step that is skipped.
    """

    MOST_IN_A_ROW = 10

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int,
        skip: bool,
        images: Callable[[int], str],
        log: Callable[[str], None],
    ):
        self._path = workdir / "not_finite.jsonl"
        self._skip, self._images, self._say = skip, images, log
        self._in_a_row = 0
        if distributed.is_main() and self._path.exists():
            listed = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in listed if _step_of(line) <= resume_step]
            write_atomically(self._path, "".join(kept))

    def look(self, recent: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
        """Returns the mean of the metrics of the steps up to `step`; steps that were not finite do not count.

        Each step is looked at once: it loses its ``index``.

        Raises:
          UserError: a step was not finite and is not to be skipped, or was the last of too many.
        """
        fetched = jax.device_get([{key: x for key, x in values.items() if key != "index"} for values in recent])
        for i, values in enumerate(fetched):
            if "index" not in recent[i]:
                continue
            index = recent[i].pop("index")
            self._in_a_row = 0 if values["finite"] else self._in_a_row + 1
            if not values["finite"]:
                self._tell(step - len(recent) + 1 + i, values, index)
        finite = [values for values in fetched if values["finite"]] or fetched[-1:]
        means = {key: float(np.mean([values[key] for values in finite])) for key in finite[0] if key != "finite"}
        return means | {"learning_rate": float(fetched[-1]["learning_rate"])}

    def _tell(self, step: int, values: Mapping[str, Any], index: jax.Array) -> None:
        names = [self._images(int(n)) for n in _everywhere(index)]
        if distributed.is_main():
            line = {"step": step, "loss": str(values["loss"]), "grad_norm": str(values["grad_norm"]), "images": names}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if not self._skip or self._in_a_row >= self.MOST_IN_A_ROW:
            check_finite(values, step)
        self._say(f"step {step}: loss or gradient is not finite; skipped (its images: {self._path})")


def _step_of(line: str) -> float:
    """Returns the step of a line of not_finite.jsonl; infinity for one that was not written to its end."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _everywhere(x: jax.Array) -> np.ndarray:
    """Returns a global array on this host, as every process asks for it."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
