"""The messages of a run: a live progress bar on a terminal, or plain lines at intervals in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TextIO, TypeVar

import jax
import rich.console
from rich.live import Live
from rich.text import Text

from jaxvision.errors import count
from jaxvision.report import machine, wording
from jaxvision.report.progress import Progress, Task
from jaxvision.report.terminal import Terminal, is_terminal
from jaxvision.report.timing import Timing

T = TypeVar("T")

#: The consoles of the `with` statements that this process is in, the innermost last.
_OPEN: list[Console] = []


class Console:
    """Prints the progress and the results of a run.

    On a terminal it shows a live bar, and prints permanent lines above it, including the output of other code. In a
    log, a pipe or a notebook it prints a plain line every `every` seconds, without control characters.

    Use it in a `with` statement. It prints on process 0 only; on other processes every method does nothing.

    Args:
      stream: where to print. None: standard output.
      live: True for the bar, False for plain lines. None: the bar if `stream` is a terminal.
      every: seconds between the plain lines of `step` and `evaluation`.

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
      step 4/8  epoch 0.5  loss 2.2500  310 images/s  data wait 2 %
      test at step 4  top-1 25.00 %  loss 2.1250  ★ best
    """

    def __init__(self, stream: TextIO | None = None, *, live: bool | None = None, every: float = 30.0) -> None:
        stream = stream or sys.stdout
        self._prints = jax.process_index() == 0
        styled = is_terminal(stream) if live is None else live
        self._terminal = Terminal(stream, styled=styled)
        if live is None:
            live = styled and not self._terminal.is_dumb_terminal
        self._is_live = live and self._prints
        self._is_on_stdout = stream is not sys.stderr
        self._live: Live | None = None
        self._every = every
        self._last_line = float("-inf")
        self._progress = Progress()

    def __enter__(self) -> Console:
        _OPEN.append(self)
        if self._is_live:
            # Transient: stopping removes the bar and leaves the lines above it.
            self._live = Live(
                get_renderable=self._bars,
                console=self._terminal,
                refresh_per_second=4,
                transient=True,
                # Not the results that a command writes to a file, if the bar is on standard error.
                redirect_stdout=self._is_on_stdout or is_terminal(sys.stdout),
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _OPEN.remove(self)
        self._stop_bar()
        if kind is not None and 0 < self._progress.step < self._progress.steps:
            self.note(f"stopped at step {self._progress.step:,} of {self._progress.steps:,}")

    def start(
        self,
        *,
        model: str,
        parameters: int,
        trainable: int | None = None,
        teacher: str | None = None,
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
        """Prints a description of the run and starts its progress.

        Args:
          model: name of the model.
          parameters: number of parameters.
          trainable: number of trainable parameters. None: all. Not shown without training.
          teacher: name of the teacher. None: there is none.
          dataset: name of the dataset.
          classes: number of classes.
          data: number of images by split, such as ``{"train": 50_000, "test": 10_000}``.
          devices: description of the devices. None: all devices of JAX.
          mesh: description of the mesh. None omits it.
          steps: number of the last training step; 0 without training.
          steps_per_epoch: steps in an epoch. None omits epochs.
          first_step: steps completed before a resumed run.
          workdir: folder of the run.
        """
        rows = [("parameters", wording.parameters(parameters, trainable) if steps else f"{parameters:,}")]
        if teacher is not None:
            rows.append(("teacher", teacher))
        splits = ", ".join(f"{n:,} {split}" for split, n in (data or {}).items())
        name = ", ".join(filter(None, [dataset, count(classes, "class", "classes") if classes else ""]))
        if described := ": ".join(text for text in (name, splits) if text):
            rows.append(("data", described))
        rows.append(("devices", devices or machine.devices()))
        if mesh is not None:
            rows.append(("mesh", mesh))
        epochs = steps / steps_per_epoch if steps_per_epoch else None
        if steps:
            text = f"{steps:,}"
            if epochs and steps_per_epoch:
                number, each = wording.epochs(epochs), f"{steps_per_epoch:,.1f}".removesuffix(".0")
                text += f" ({number} epoch{'s' * (number != '1')} of {each} step{'s' * (each != '1')})"
            if first_step:
                text += f", resuming after step {first_step:,}"
            rows.append(("steps", text))
        if workdir is not None:
            rows.append(("workdir", os.fspath(workdir)))
        self._line(Text(model, style="bold"))
        self._rows(rows)
        self._progress = Progress(steps=steps, first_step=first_step, epochs=epochs)

    def note(self, text: str) -> None:
        """Prints a line."""
        self._line(Text(text))

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self._line(Text.assemble(("warning: ", "bold yellow"), (text, "yellow")))

    def result(
        self,
        values: Mapping[str, float],
        *,
        name: str = "evaluation",
        step: int | None = None,
        epoch: float | None = None,
        best: bool = False,
    ) -> None:
        """Prints the metrics of an evaluation in one line.

        Args:
          values: metrics by name, such as ``{"top1": 0.93, "top5": 0.99, "loss": 0.21}``; fractions are 0 to 1.
          name: name of the evaluated split.
          step: number of completed steps.
          epoch: number of completed epochs.
          best: whether the evaluation is the best so far.
        """
        line = Text(name, style="bold cyan")
        if step is not None:
            line.append(f" at step {step:,}", style="dim not bold")
        if epoch is not None:
            line.append(f"  epoch {wording.epochs(epoch)}", style="dim not bold")
        for key, x in values.items():
            line.append(f"  {wording.label(key)} ", style="dim not bold").append(wording.value(key, x), style="bold")
        if best:
            line.append("  ★ best", style="yellow")
        self._line(line)

    def table(self, name: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> None:
        """Prints the metrics of several models, one in each row.

        Args:
          name: heading of the first column, such as "test".
          rows: (name of a model, its metrics by name).
        """
        if not self._prints:
            return
        keys = list(dict.fromkeys(key for _, values in rows for key in values))
        body = [[model, *(wording.value(key, values.get(key)) for key in keys)] for model, values in rows]
        self._line(Text())
        self._terminal.print_table([name, *map(wording.label, keys)], body)

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
        """Removes the bar and prints the summary.

        Args:
          final: metrics of the last evaluation by name.
          name: heading of those metrics, such as "test".
          best: metrics of the best evaluation. None if the last one was the best.
          best_step: number of steps before the best evaluation.
          timing: measurements of a `Clock`.
          files: paths by name, such as ``{"report": "runs/x/report.html"}``.
        """
        self._stop_bar()
        self._progress.step = self._progress.steps
        header = ["", name]
        columns = [final]
        if best is not None:
            header.append("best" if best_step is None else f"best, step {best_step:,}")
            columns.append(best)
        names = list(dict.fromkeys(name for column in columns for name in column))
        body = [[wording.label(n), *(wording.value(n, column.get(n)) for column in columns)] for n in names]
        rows: list[tuple[str, str]] = []
        if timing is not None:
            # The label distinguishes the median step time from the throughput, which is a mean over the run.
            labels = {"step_seconds": "median step"}
            rows += [
                (labels.get(name, wording.label(name)), wording.value(name, x)) for name, x in timing.rates().items()
            ]
            if "compile" in timing.seconds:
                rows.append(("compilation", wording.duration(timing.seconds["compile"])))
            rows.append(("total time", wording.duration(timing.total)))
        rows += [(name, os.fspath(path)) for name, path in (files or {}).items()]
        self._line(Text())
        if self._prints:
            self._terminal.print_table(header, body)
        if rows:
            self._line(Text())
            self._rows(rows)

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
        """Updates the progress. Cheap enough to call after every step.

        A value that is None or missing keeps its previous display.

        Args:
          step: number of completed steps.
          epoch: number of completed epochs, such as 1.5.
          loss: the loss as a number on the host. A device array would block until its step has finished.
          images_per_second: recent throughput.
          data_wait: recent fraction of the time spent waiting for data, 0 to 1.
          **values: further metrics to show.
        """
        if not self._prints:
            return
        now = time.monotonic()
        named = {"epoch": epoch, "loss": loss, "images_per_second": images_per_second, "data_wait": data_wait}
        self._progress.update(step, named | values, now=now)
        if self._live is None and (now - self._last_line >= self._every or step == self._progress.steps):
            self._last_line = now
            self._line(Text(self._progress.line()))

    def evaluation(self, batches: Iterable[T], *, total: int | None = None, name: str = "evaluation") -> Iterator[T]:
        """Yields `batches` one by one and shows the progress.

        Args:
          batches: any iterable.
          total: number of batches. None: the length of `batches` if it is a sequence, else unknown.
          name: name of the evaluated split.
        """
        if total is None and isinstance(batches, Sequence):
            total = len(batches)
        start = time.monotonic()
        try:
            for done, batch in enumerate(batches):
                self._progress.evaluating = (name, done, total)
                now = time.monotonic()
                if self._live is None and done and now - max(self._last_line, start) >= self._every:
                    self._last_line = now
                    self._line(Text(f"{name}  {done:,}{f'/{total:,}' if total else ''} batches"))
                yield batch
        finally:
            self._progress.evaluating = None
            self._progress.evaluation_seconds += time.monotonic() - start

    @contextmanager
    def task(self, name: str, total: int | None = None, *, unit: str) -> Iterator[Callable[[int], None]]:
        """Shows the progress of long work outside training.

        Args:
          name: what is done, such as ``"download food-101.tar.gz"``.
          total: the amount. None: unknown.
          unit: ``"bytes"``, or the name of the things that are counted, such as ``"images"``.

        Yields:
          A function to call with the amount that is done, as often as you like.
        """
        task = self._progress.task = Task(name, total, unit, now=time.monotonic())
        last_line = time.monotonic()

        def update(done: int) -> None:
            nonlocal last_line
            now = time.monotonic()
            task.update(done, now=now)
            if self._live is None and now - last_line >= min(self._every, 10.0):
                last_line = now
                self.note(task.line())

        try:
            yield update
            self.note(task.line())
        finally:
            self._progress.task = None

    def _bars(self) -> rich.console.Group:
        return self._progress.bars(self._terminal.width)

    def _stop_bar(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, text: Text) -> None:
        if self._prints:
            self._terminal.print_line(text)

    def _rows(self, rows: Sequence[tuple[str, str]]) -> None:
        if self._prints:
            self._terminal.print_rows(rows)


@contextmanager
def show_progress(name: str, total: int | None = None, *, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows the progress of long work on the open console, or else on standard error. Otherwise as `Console.task`.

    Example:
      >>> with show_progress("count", 3, unit="sheep") as update:
      ...     for done in range(4):
      ...         update(done)
    """
    with ExitStack() as stack:
        console = _OPEN[-1] if _OPEN else stack.enter_context(Console(sys.stderr))
        yield stack.enter_context(console.task(name, total, unit=unit))
