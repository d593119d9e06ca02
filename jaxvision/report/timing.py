"""The time of a run, divided among its phases."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

DATA_WAIT = "data wait"
STEPS = "steps"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Measurements of a `Clock`.

    Attributes:
      seconds: seconds by phase, such as ``{"compile": 12.0, "data wait": 3.1, "steps": 250.0, "evaluation": 9.4}``.
      images_per_second: throughput of training, without compilation, evaluation and checkpoints. None: no training.
      step_seconds: median duration of a step, including the wait for its data. Each sample is the mean of one lap.
      mfu: model FLOPs utilization: the share of the devices' peak rate that the products of the model take, 0 to 1.
        None: the peak is unknown.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    step_seconds: float | None = None
    mfu: float | None = None

    @property
    def total(self) -> float:
        """Total duration in seconds."""
        return sum(self.seconds.values())

    @property
    def data_wait(self) -> float | None:
        """Fraction of the training time spent waiting for data, 0 to 1; None without training."""
        wait = self.seconds.get(DATA_WAIT, 0.0)
        training = wait + self.seconds.get(STEPS, 0.0)
        return wait / training if training > 0 else None

    def rates(self) -> dict[str, float]:
        """Returns throughput, MFU, step duration and data wait by name, without those that are None."""
        rates = {
            "images_per_second": self.images_per_second,
            "mfu": self.mfu,
            "step_seconds": self.step_seconds,
            "data_wait": self.data_wait,
        }
        return {name: x for name, x in rates.items() if x is not None}


class Clock:
    """Divides wall-clock time among the phases of a run.

    Time outside of every `phase` counts as ``"steps"``. JAX dispatches asynchronously, so the duration of a step
    cannot be measured around its call, only as the remaining time.

    Args:
      now: returns the time in seconds.

    Attributes:
      peak_images_per_second: throughput at which the model's products take all of the devices' peak rate; None if it
        is unknown. It is the unit of the MFU.

    Example:
      >>> ticks = iter(range(100))
      >>> clock = Clock(now=lambda: float(next(ticks)))           # each reading advances by one second
      >>> with clock.phase("compile"):
      ...     pass
      >>> for batch in range(2):
      ...     with clock.phase("data wait"):
      ...         pass
      ...     clock.step(images=8)
      >>> clock.lap()
      {'images_per_second': 2.66..., 'data_wait': 0.33..., 'step_seconds': 3.0}
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.peak_images_per_second: float | None = None
        self._now = now
        self._seconds: dict[str, float] = {}
        self._inside = False
        self._laps: list[float] = []
        self._images = 0
        self._start = self._lap_start = now()
        self._lap_images = self._lap_steps = 0
        self._lap_wait = self._lap_other = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside the block as `name`. A phase within a phase counts as the outer one."""
        assert name != STEPS, "steps are the remaining time"
        if self._inside:
            yield
            return
        self._inside = True
        start = self._now()
        try:
            yield
        finally:
            self._inside = False
            spent = self._now() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
            if name == DATA_WAIT:
                self._lap_wait += spent
            else:
                self._lap_other += spent

    def step(self, images: int) -> None:
        """Counts one step on `images` images."""
        self._images += images
        self._lap_images += images
        self._lap_steps += 1

    def lap(self) -> dict[str, float]:
        """Returns the rates since the previous lap and starts a new lap.

        Call it right after fetching a value of the last step, which ensures that all counted steps have finished.

        Returns:
          ``images_per_second``, ``mfu`` if the peak is known, ``data_wait`` (fraction, 0 to 1) and ``step_seconds``;
          empty without a step.
        """
        now = self._now()
        training = now - self._lap_start - self._lap_other
        images, steps, wait = self._lap_images, self._lap_steps, self._lap_wait
        self._lap_start, self._lap_images, self._lap_steps, self._lap_wait, self._lap_other = now, 0, 0, 0.0, 0.0
        if not steps or training <= 0:
            return {}
        self._laps.append(training / steps)
        rate, mfu = images / training, self._mfu(images / training)
        others = {"data_wait": wait / training, "step_seconds": training / steps}
        return {"images_per_second": rate, **({} if mfu is None else {"mfu": mfu}), **others}

    def timing(self) -> Timing:
        """Returns the measurements since the clock was created."""
        elsewhere = sum(self._seconds.values())
        steps = max(self._now() - self._start - elsewhere, 0.0)
        training = steps + self._seconds.get(DATA_WAIT, 0.0)
        trained = self._images > 0 and training > 0
        return Timing(
            seconds={STEPS: steps, **self._seconds} if trained else dict(self._seconds),
            images_per_second=self._images / training if trained else None,
            step_seconds=statistics.median(self._laps) if self._laps else None,
            mfu=self._mfu(self._images / training) if trained else None,
        )

    def _mfu(self, images_per_second: float) -> float | None:
        return images_per_second / self.peak_images_per_second if self.peak_images_per_second else None
