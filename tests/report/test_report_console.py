"""The console: a live bar on a terminal, plain lines in a log, and output after an interrupt."""

# ruff: noqa: RUF001, RUF003

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import jax
import pytest
import rich.console

from jaxvision.report import Console, MetricsWriter, Timing, show_progress
from jaxvision.report.progress import Progress


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def run(console: Console, *, steps: int = 100) -> None:
    console.start(
        model="vit_tiny_patch16_224",
        parameters=5_717_416,
        trainable=1_930,
        dataset="cifar10",
        classes=10,
        data={"train": 50_000, "test": 10_000},
        devices="8 × TPU v5",
        steps=steps,
        steps_per_epoch=50,
        workdir="runs/x",
    )
    for step in range(1, steps + 1):
        console.step(step, epoch=step / 50, loss=2.0 / step, images_per_second=1234.5, data_wait=0.034)
    assert list(console.evaluation(iter("abc"), total=3, name="test")) == ["a", "b", "c"]
    console.result({"top1": 0.93421, "loss": 0.25}, name="test", step=steps, epoch=2, best=True)
    console.note("[bold]17.jpg[/bold] cannot be read")
    console.finish(
        final={"top1": 0.93421, "top5": 0.998, "loss": 0.2134, "calibration_error": 0.021},
        best={"top1": 0.9401, "loss": 0.2},
        best_step=50,
        timing=Timing(
            seconds={"steps": 90.0, "data wait": 10.0, "compile": 12.34}, images_per_second=1200.0, step_seconds=0.103
        ),
        files={"report": Path("runs/x/report.html")},
    )


def test_plain_lines_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services do
    out = io.StringIO()
    with Console(out, every=1e9) as console:
        run(console)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.splitlines() == [
        "vit_tiny_patch16_224",
        "  parameters  5,717,416, of which 1,930 trainable",
        "  data        cifar10, 10 classes: 50,000 train, 10,000 test",
        "  devices     8 × TPU v5",
        "  steps       100 (2 epochs of 50 steps)",
        "  workdir     runs/x",
        "step 1/100  epoch 0.02/2  loss 2.0000  1,234 images/s  data wait 3 %",
        "step 100/100  epoch 2/2  loss 0.0200  1,234 images/s  data wait 3 %",
        "test at step 100  epoch 2  top-1 93.42 %  loss 0.2500  ★ best",
        "[bold]17.jpg[/bold] cannot be read",
        "",
        "            final   best, step 50",
        "  top-1   93.42 %         94.01 %",
        "  top-5   99.80 %               —",
        "  loss     0.2134          0.2000",
        "  ECE      2.10 %               —",
        "",
        "  images/s     1,200",
        "  median step  103 ms",
        "  data wait    10 %",
        "  compilation  12.3 s",
        "  total time   1:52",
        "  report       runs/x/report.html",
    ]


def test_plain_lines_come_at_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Console(out, every=30) as console:
        console.start(model="m", parameters=1, devices="d", steps=100)
        for step in range(1, 61):
            now[0] += 1.0  # each step takes a second
            console.step(step)
        for _ in console.evaluation(range(90), total=90, name="test"):
            now[0] += 1.0
        now[0] += 1.0
        console.step(61)
    lines = out.getvalue().splitlines()[4:]
    # After step 31, 69 steps of one second are left. The evaluation of 90 seconds after 60 steps adds 90 / 61 seconds
    # to each of the last 39 steps: 39 × (1 + 90 / 61) = 96.5.
    assert lines == [
        "step 1/100",
        "step 31/100  1:09 left",
        "test  30/90 batches",
        "test  60/90 batches",
        "step 61/100  1:37 left",
    ]


def test_live_bar_on_a_terminal(terminal: Terminal) -> None:
    stdout, stderr = sys.stdout, sys.stderr
    with Console(terminal) as console:
        assert sys.stdout is not stdout  # output of other code goes above the bar
        run(console)
    assert sys.stdout is stdout
    assert sys.stderr is stderr
    text = terminal.getvalue()
    assert "━" in text
    assert "100/100" in text
    assert "\x1b[?25l" not in text  # the cursor stays visible
    assert "93.42 %" in text
    assert "[bold]17.jpg[/bold]" in text


def test_the_bar_leaves_room_for_the_echo_of_an_interrupt() -> None:
    out = io.StringIO()
    rich.console.Console(file=out, width=100).print(Progress(steps=10).bars(100))
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines()) <= 96


def test_an_interrupt_restores_the_streams(terminal: Terminal) -> None:
    stdout = sys.stdout

    def interrupted() -> None:
        with Console(terminal) as console:
            console.start(model="m", parameters=1, devices="d", steps=10)
            console.step(4, loss=1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sys.stdout is stdout
    assert terminal.getvalue().rstrip().endswith("stopped at step 4 of 10")


def test_a_stream_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    with Console(io.TextIOWrapper(raw, encoding="ascii", write_through=True)) as console:
        run(console)
        console.warn("Käfer")
    text = raw.getvalue().decode("ascii")
    assert "devices     8 x TPU v5" in text
    assert "* best" in text
    assert "warning: K?fer" in text


def test_other_processes_are_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: Terminal) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Console(terminal) as console, MetricsWriter(tmp_path / "x") as metrics:
        run(console)
        metrics.write(1, "train", {"loss": 1.0})
    assert terminal.getvalue() == ""
    assert not (tmp_path / "x").exists()


def test_an_evaluation_without_training_shows_neither_steps_nor_what_trains(terminal: Terminal) -> None:
    with Console(terminal) as console:
        console.start(model="m", parameters=1, devices="d", data={"test": 3})
        assert list(console.evaluation([1, 2, 3])) == [1, 2, 3]
        console.finish(final={"top1": 1.0})
    assert "steps" not in terminal.getvalue()
    assert "trainable" not in terminal.getvalue()


def test_long_work_is_shown_on_the_open_console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A download of a megabyte each second, after 20 of an earlier one."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()

    def download(name: str) -> None:
        nonlocal now
        with show_progress(name, 50_000_000, unit="bytes") as update:
            for megabytes in range(20, 51):
                now += 1
                update(1_000_000 * megabytes)

    with Console(out):
        download("on the console")
    download("on standard error")
    lines = [
        "29 MB of 50 MB  1.0 MB/s  0:21 left",
        "39 MB of 50 MB  1.0 MB/s  0:11 left",
        "49 MB of 50 MB  1.0 MB/s  0:01 left",
        "50 MB of 50 MB  1.0 MB/s",
    ]
    assert out.getvalue().splitlines() == [f"on the console  {line}" for line in lines]
    assert capsys.readouterr().err.splitlines() == [f"on standard error  {line}" for line in lines]


def test_long_work_has_a_bar_on_a_terminal(terminal: Terminal) -> None:
    with Console(terminal) as console, console.task("unpack it", 60_000, unit="images") as update:
        update(30_000)
        time.sleep(0.3)  # the bar is drawn four times a second
    assert "unpack it" in terminal.getvalue()
    assert "30,000 of 60,000 images" in terminal.getvalue()


def test_numbers_of_things_and_epochs() -> None:
    """The last step of 30 epochs of 16.3 steps ends in the 31st, which is nothing to show."""
    out = io.StringIO()
    with Console(out, every=0) as console:
        console.start(model="m", parameters=1, dataset="one", classes=1, devices="x", steps=489, steps_per_epoch=16.3)
        console.step(20, epoch=20 / 16.27)
        console.result({"loss": 1.0}, name="test", step=489, epoch=489 / 16.27)
    text = out.getvalue()
    assert "one, 1 class\n" in text
    assert "489 (30 epochs of 16.3 steps)" in text
    assert "epoch 1.2/30" in text
    assert "test at step 489  epoch 30  loss" in text
