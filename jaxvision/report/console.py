"""What a run says while it runs: a live bar on a terminal, sparse plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TextIO, TypeVar

import jax
import rich.console
from rich.cells import cell_len, set_cell_size
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxvision.report import machine, wording
from jaxvision.report.timing import Timing

T = TypeVar("T")

# The share of the time spent waiting for data at which it is worth a look, and at which it is the bottleneck.
_WAIT_NOTABLE, _WAIT_BAD = 0.1, 0.3
# Characters beyond ASCII that this module writes, for streams that cannot carry them (LANG=C).
_ASCII = str.maketrans({"×": "x", "—": "-", "★": "*"})  # noqa: RUF001


class Console:
    """Tells how a run goes.

    On a terminal one live bar shows the progress, and lines that stay are written above it; whatever others print
    meanwhile lands there too. Where the output is not a terminal (a log, a pipe, a notebook) there is a plain line
    now and then instead, without any control characters. The cursor is never hidden, so that even a process that is
    killed leaves the terminal as it found it.

    Use it in a `with` statement. Only process 0 speaks; on the others every method does nothing.

    Args:
      stream: where to write; standard output by default.
      live: the bar (True) or plain lines (False); None decides by the stream.
      every: seconds between plain lines of `step` and `evaluation`.

    Example:
      >>> import sys
      >>> with Console(sys.stdout, every=0) as console:
      ...     console.start(model="resnet18", parameters=11_181_642, data={"train": 512}, devices="1 × cpu", steps=8)
      ...     console.step(4, epoch=0.5, loss=2.25, images_per_second=310, data_wait=0.02)
      ...     console.result({"top1": 0.25, "loss": 2.125}, name="test", step=4, best=True)
      resnet18
        parameters  11,181,642, all trainable
        data        512 train
        devices     1 × cpu
        steps       8
      step 4/8  epoch 0.50  loss 2.2500  310 images/s  data wait 2 %
      test at step 4  top-1 25.00 %  loss 2.1250  ★ best
    """

    def __init__(self, stream: TextIO | None = None, *, live: bool | None = None, every: float = 30.0) -> None:
        stream = stream or sys.stdout
        self._speaks = jax.process_index() == 0
        # Not `is_terminal` of rich: FORCE_COLOR, which CI services set, would make a log a terminal.
        terminal = _is_terminal(stream) if live is None else live
        self._out = _Terminal(
            file=stream,
            color_system="auto" if terminal else None,
            highlight=False,
            markup=False,
            emoji=False,
            force_jupyter=False,
        )
        if live is None:
            live = terminal and not self._out.is_dumb_terminal
        self._is_live = live and self._speaks
        self._live: Live | None = None
        self._every = every
        self._last_line = float("-inf")
        self._unicode = (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")

        self._steps = self._step = self._first_step = 0
        self._epochs: float | None = None
        self._values: dict[str, float] = {}
        self._evaluating: tuple[str, int, int | None] | None = None
        self._evaluation_seconds = 0.0
        # (seconds of training, step), some seconds apart: the pace of late, for the time that is left.
        self._pace: deque[tuple[float, int]] = deque(maxlen=20)

    def __enter__(self) -> Console:
        if self._is_live:
            # Transient: the bar goes when the run ends, and what stays are the lines above it.
            self._live = Live(get_renderable=self._bars, console=self._out, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if kind is not None and 0 < self._step < self._steps:
            self.note(f"stopped at step {self._step:,} of {self._steps:,}")

    # What is said once.

    def start(
        self,
        *,
        model: str,
        parameters: int,
        trainable: int | None = None,
        dataset: str | None = None,
        classes: int | None = None,
        data: Mapping[str, int] | None = None,
        devices: str | None = None,
        mesh: str | None = None,
        steps: int = 0,
        steps_per_epoch: float | None = None,
        first_step: int = 0,
        workdir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Says what is about to run, and starts the bar.

        Args:
          model: name of the model.
          parameters: how many it has.
          trainable: how many of them learn; None: all.
          dataset: name of the data set.
          classes: how many it tells apart.
          data: images by split, such as ``{"train": 50_000, "test": 10_000}``.
          devices: None: what JAX sees.
          mesh: how they share the work; None: there is one.
          steps: the step at which the training ends; 0: there is no training, only an evaluation.
          steps_per_epoch: what makes an epoch; None: epochs mean nothing here.
          first_step: steps done before, by the run that this one goes on from.
          workdir: where everything goes.
        """
        rows = [("parameters", wording.parameters(parameters, trainable))]
        splits = ", ".join(f"{n:,} {split}" for split, n in (data or {}).items())
        name = f"{dataset or ''}{f', {classes:,} classes' if classes else ''}".removeprefix(", ")
        if described := ": ".join(text for text in (name, splits) if text):
            rows.append(("data", described))
        rows.append(("devices", devices or machine.devices()))
        if mesh is not None:
            rows.append(("mesh", mesh))
        if steps:
            epochs = (
                f": {steps / steps_per_epoch:.3g} epochs of {round(steps_per_epoch, 1):g}" if steps_per_epoch else ""
            )
            onward = f", going on after step {first_step:,}" if first_step else ""
            rows.append(("steps", f"{steps:,}{epochs}{onward}"))
        if workdir is not None:
            rows.append(("workdir", os.fspath(workdir)))
        self._say(Text(model, style="bold"))
        self._say_rows(rows)
        self._steps, self._step, self._first_step = steps, first_step, first_step
        self._epochs = steps / steps_per_epoch if steps_per_epoch else None

    def note(self, text: str) -> None:
        """Writes a line that stays."""
        self._say(Text(text))

    def warn(self, text: str) -> None:
        """Writes a line that stays and stands out."""
        self._say(Text.assemble(("warning: ", "bold yellow"), (text, "yellow")))

    def result(
        self,
        values: Mapping[str, float],
        *,
        name: str = "evaluation",
        step: int | None = None,
        epoch: float | None = None,
        best: bool = False,
    ) -> None:
        """Writes the numbers of one evaluation as a line that stays.

        Args:
          values: by name, such as ``{"top1": 0.93, "top5": 0.99, "loss": 0.21}``; shares are 0 to 1.
          name: what was evaluated.
          step: after how many steps.
          epoch: after how many epochs.
          best: whether this is the best one so far.
        """
        line = Text(name, style="bold cyan")
        if step is not None:
            line.append(f" at step {step:,}", style="dim not bold")
        if epoch is not None:
            line.append(f"  epoch {epoch:.4g}", style="dim not bold")
        for key, x in values.items():
            line.append(f"  {wording.label(key)} ", style="dim not bold").append(wording.value(key, x), style="bold")
        if best:
            line.append("  ★ best", style="yellow")
        self._say(line)

    def finish(
        self,
        *,
        final: Mapping[str, float],
        name: str = "final",
        best: Mapping[str, float] | None = None,
        best_step: int | None = None,
        timing: Timing | None = None,
        files: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        """Takes the bar away and writes the summary.

        Args:
          final: the numbers of the last evaluation, by name.
          name: what that was of, such as "test".
          best: those of the best one; left out where the last was the best.
          best_step: after how many steps that was.
          timing: what the `Clock` measured.
          files: where things are, such as ``{"report": "runs/x/report.html"}``.
        """
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._step = self._steps
        header = ["", name]
        columns = [final]
        if best is not None:
            header.append("best" if best_step is None else f"best, step {best_step:,}")
            columns.append(best)
        names = list(dict.fromkeys(name for column in columns for name in column))
        body = [[wording.label(n), *(wording.value(n, column.get(n)) for column in columns)] for n in names]
        self._say(Text())
        self._say_table(header, body)
        rows: list[tuple[str, str]] = []
        if timing is not None:
            facts = {
                "images_per_second": timing.images_per_second,
                "step_seconds": timing.step_seconds,
                "data_wait": timing.data_wait,
            }
            # Beside a rate, which is the mean over the run.
            labels = {"step_seconds": "median step"}
            rows += [
                (labels.get(name, wording.label(name)), wording.value(name, x))
                for name, x in facts.items()
                if x is not None
            ]
            if "compile" in timing.seconds:
                rows.append(("compilation", wording.duration(timing.seconds["compile"])))
            rows.append(("time in all", wording.duration(timing.total)))
        rows += [(name, os.fspath(path)) for name, path in (files or {}).items()]
        if rows:
            self._say(Text())
            self._say_rows(rows)

    # What is said all the time.

    def step(
        self,
        step: int,
        *,
        epoch: float | None = None,
        loss: float | None = None,
        images_per_second: float | None = None,
        data_wait: float | None = None,
        **values: float | None,
    ) -> None:
        """Moves the bar to `step`. Cheap: may be called after every step.

        Args:
          step: steps done.
          epoch: epochs done, such as 1.5.
          loss: a number that is on the host already; a device array would be waited for.
          images_per_second: of late.
          data_wait: the share of the time of late that was spent waiting for data, 0 to 1.
          **values: more numbers to show.

        A value that is None, or not given, stays as it was shown.
        """
        if not self._speaks:
            return
        now = time.monotonic()
        self._step = step
        given = {"epoch": epoch, "loss": loss, "images_per_second": images_per_second, "data_wait": data_wait} | values
        self._values |= {name: x for name, x in given.items() if x is not None}
        # The first sample is taken when the first step is over, so compilation does not count.
        training = now - self._evaluation_seconds
        if not self._pace or training - self._pace[-1][0] >= 1.0:
            self._pace.append((training, step))
        if self._live is None and (now - self._last_line >= self._every or step == self._steps):
            self._last_line = now
            facts = [f"step {step:,}/{self._steps:,}", *(text for text, _ in self._facts())]
            left = self._time_left()
            self._say(Text("  ".join([*facts, f"{wording.clock(left)} left"] if left else facts)))

    def evaluation(self, batches: Iterable[T], *, total: int | None = None, name: str = "evaluation") -> Iterator[T]:
        """Yields `batches` one by one while it shows how far that is.

        Args:
          batches: anything to iterate over.
          total: how many there are; None: ``len(batches)`` where there is one.
          name: what is evaluated.
        """
        if total is None and isinstance(batches, Sequence):
            total = len(batches)
        start = time.monotonic()
        try:
            for done, batch in enumerate(batches):
                self._evaluating = (name, done, total)
                now = time.monotonic()
                if self._live is None and done and now - max(self._last_line, start) >= self._every:
                    self._last_line = now
                    self._say(Text(f"{name}  {done:,}{f'/{total:,}' if total else ''} batches"))
                yield batch
        finally:
            self._evaluating = None
            self._evaluation_seconds += time.monotonic() - start

    # How it looks.

    def _facts(self) -> list[tuple[str, str]]:
        """Returns (text, style) for each number of the current step."""
        facts = []
        for name, x in self._values.items():
            style = ""
            if name == "epoch":
                text = f"epoch {x:.2f}" + (f"/{self._epochs:.3g}" if self._epochs else "")
            elif name == "images_per_second":
                text = f"{wording.value(name, x)} images/s"
            else:
                text = f"{wording.label(name)} {wording.value(name, x)}"
                if name == "data_wait":
                    style = "bold red" if x >= _WAIT_BAD else "yellow" if x >= _WAIT_NOTABLE else ""
            facts.append((text, style))
        return facts

    def _time_left(self) -> float | None:
        if len(self._pace) < 2 or self._step >= self._steps:
            return None
        (earlier, first), (later, last) = self._pace[0], self._pace[-1]
        if last <= first:
            return None
        # Evaluations to come take their share as those so far did.
        per_step = (later - earlier) / (last - first)
        per_step += self._evaluation_seconds / max(self._step - self._first_step, 1)
        return (self._steps - self._step) * per_step

    def _bars(self) -> rich.console.Group:
        # Room at the right for the ^C that a terminal echoes: in a full line it would move everything by a line.
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.width = max(self._out.width - 4, 20)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, min_width=10)
        grid.add_column(no_wrap=True, justify="right")
        if self._steps:
            left = self._time_left()
            count = Text(f"{self._step:,}/{self._steps:,}  {100 * self._step // self._steps} %")
            if left is not None:
                count.append(f"  {wording.clock(left)} left", style="cyan")
            grid.add_row(Text("train", style="bold"), _bar(self._step, self._steps), count)
        if self._evaluating is not None:
            name, done, total = self._evaluating
            count = Text(f"{done:,}/{total:,}  {100 * done // total} %" if total else f"{done:,} batches")
            grid.add_row(Text(name, style="bold"), _bar(done, total), count)
        if not self._steps or not self._values:
            return rich.console.Group(grid)
        return rich.console.Group(
            grid, Text("  ").join(Text(text, style=style or "dim") for text, style in self._facts())
        )

    def _say(self, line: Text) -> None:
        if not self._speaks:
            return
        if not self._unicode:
            styled = line
            line = Text(styled.plain.translate(_ASCII).encode("ascii", "replace").decode(), style=styled.style)
        # Soft wrap: a path stays in one piece, to be copied.
        self._out.print(line, soft_wrap=True)

    def _say_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        width = max(cell_len(name) for name, _ in rows)
        for name, text in rows:
            self._say(Text.assemble((f"  {set_cell_size(name, width)}  ", "dim"), text))

    def _say_table(self, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
        widths = [max(cell_len(row[i]) for row in [header, *body]) for i in range(len(header))]
        for i, row in enumerate([header, *body]):
            style = "dim" if i == 0 else "bold"
            line = Text.assemble(("  " + set_cell_size(row[0], widths[0]), "dim"))
            for cell, width in zip(row[1:], widths[1:], strict=True):
                line.append("   " + " " * (width - cell_len(cell)) + cell, style=style)
            self._say(line)


class _Terminal(rich.console.Console):
    def show_cursor(self, show: bool = True) -> bool:
        # A live display hides the cursor, and a process that is killed cannot show it again.
        return False


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # not a file, or a closed one
        return False


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
