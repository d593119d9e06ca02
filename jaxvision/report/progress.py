"""The progress of a run: its step, its metrics, the time left, and the bars that show them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import rich.console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxvision.report import wording

# Fractions of the time spent waiting for data from which the number is yellow and red.
_WAIT_NOTABLE, _WAIT_BAD = 0.1, 0.3


class Task:
    """Long work outside training, such as a download.

    Args:
      name: what is done, such as ``"download food-101.tar.gz"``.
      total: the amount. None: unknown.
      unit: ``"bytes"``, or the name of the things that are counted, such as ``"images"``.

    Attributes:
      done: the amount that is done.

    Example:
      >>> task = Task("download food-101.tar.gz", 4_996_278_331, "bytes", now=0.0)
      >>> task.update(300_000_000, now=1.0)
      >>> task.update(400_000_000, now=11.0)
      >>> task.line()
      'download food-101.tar.gz  400 MB of 4,996 MB  10.0 MB/s  7:40 left'
    """

    def __init__(self, name: str, total: int | None, unit: str, *, now: float) -> None:
        self.name, self.total, self.done = name, total, 0
        self._unit = unit
        self._start: tuple[float, int] | None = None  # an interrupted download resumes at more than 0
        self._now = now

    def update(self, done: int, *, now: float) -> None:
        """Records the amount that is done."""
        if self._start is None or done < self._start[1]:
            self._start = now, done
        self.done, self._now = done, now

    def facts(self) -> list[str]:
        """Returns the amount, the rate and the time left as text."""
        facts = [wording.amount(self.done, self.total, self._unit)]
        if self._start is not None and self._now > self._start[0]:
            rate = (self.done - self._start[1]) / (self._now - self._start[0])
            if rate:
                facts.append(wording.rate(rate, self._unit))
                if self.total and self.total > self.done:
                    facts.append(f"{wording.clock((self.total - self.done) / rate)} left")
        return facts

    def line(self) -> str:
        """Returns the progress as one line of plain text."""
        return "  ".join([self.name, *self.facts()])


class Progress:
    """The state of a run, updated after each step.

    Args:
      steps: total number of steps; 0 for an evaluation without training.
      first_step: steps completed before this process started.
      epochs: total number of epochs. None: unknown.

    Attributes:
      step: number of completed steps.
      evaluating: name, completed batches and total batches (None: unknown) of the current evaluation, or None.
      evaluation_seconds: total duration of the evaluations so far.
      task: the current work outside training, or None.
    """

    def __init__(self, *, steps: int = 0, first_step: int = 0, epochs: float | None = None) -> None:
        self.steps, self.step, self.epochs = steps, first_step, epochs
        self.evaluating: tuple[str, int, int | None] | None = None
        self.evaluation_seconds = 0.0
        self.task: Task | None = None
        self._first_step = first_step
        self._values: dict[str, float] = {}
        # Recent samples (seconds of training, step), at least a second apart.
        self._pace: deque[tuple[float, int]] = deque(maxlen=20)

    def update(self, step: int, values: Mapping[str, float | None], *, now: float) -> None:
        """Records a completed step.

        Args:
          step: number of completed steps.
          values: metrics by name. A metric that is None keeps its previous value.
          now: the current time in seconds.
        """
        self.step = step
        self._values |= {name: x for name, x in values.items() if x is not None}
        # The first sample follows the first step, so that compilation does not count.
        training = now - self.evaluation_seconds
        if not self._pace or training - self._pace[-1][0] >= 1.0:
            self._pace.append((training, step))

    def time_left(self) -> float | None:
        """Returns the estimated seconds until the last step, including evaluations; None if unknown."""
        if len(self._pace) < 2 or self.step >= self.steps:
            return None
        (earlier, first), (later, last) = self._pace[0], self._pace[-1]
        if last <= first:
            return None
        per_step = (later - earlier) / (last - first)
        per_step += self.evaluation_seconds / max(self.step - self._first_step, 1)
        return (self.steps - self.step) * per_step

    def facts(self) -> list[tuple[str, str]]:
        """Returns (text, style) for each current metric."""
        facts = []
        for name, x in self._values.items():
            style = ""
            if name == "epoch":
                text = f"epoch {wording.epochs(x)}" + (f"/{wording.epochs(self.epochs)}" if self.epochs else "")
            elif name == "images_per_second":
                text = f"{wording.value(name, x)} images/s"
            else:
                text = f"{wording.label(name)} {wording.value(name, x)}"
                if name == "data_wait":
                    style = "bold red" if x >= _WAIT_BAD else "yellow" if x >= _WAIT_NOTABLE else ""
            facts.append((text, style))
        return facts

    def line(self) -> str:
        """Returns the progress as one line of plain text."""
        left = self.time_left()
        facts = [f"step {self.step:,}/{self.steps:,}", *(text for text, _ in self.facts())]
        return "  ".join([*facts, f"{wording.clock(left)} left"] if left else facts)

    def bars(self, width: int) -> rich.console.Group:
        """Returns the bars of training and of the current evaluation, above the metrics.

        Args:
          width: columns of the terminal.
        """
        # Leaves room on the right for the ^C that a terminal echoes, which would otherwise wrap the line.
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.width = max(width - 4, 20)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, min_width=10)
        grid.add_column(no_wrap=True, justify="right")
        if self.steps:
            left = self.time_left()
            count = Text(f"{self.step:,}/{self.steps:,}  {100 * self.step // self.steps} %")
            if left is not None:
                count.append(f"  {wording.clock(left)} left", style="cyan")
            grid.add_row(Text("train", style="bold"), _bar(self.step, self.steps), count)
        if self.evaluating is not None:
            name, done, total = self.evaluating
            count = Text(f"{done:,}/{total:,}  {100 * done // total} %" if total else f"{done:,} batches")
            grid.add_row(Text(name, style="bold"), _bar(done, total), count)
        if self.task is not None:
            facts_of_task = "  ".join(self.task.facts())
            grid.add_row(Text(self.task.name, style="bold"), _bar(self.task.done, self.task.total), facts_of_task)
        if not self.steps or not self._values:
            return rich.console.Group(grid)
        facts = (Text(text, style=style or "dim") for text, style in self.facts())
        return rich.console.Group(grid, Text("  ").join(facts))


def _bar(done: int, total: int | None) -> ProgressBar:
    return ProgressBar(
        total=total,
        completed=done,
        pulse=total is None,
        style="gray30",
        complete_style="cyan",
        finished_style="green",
        pulse_style="cyan",
    )
