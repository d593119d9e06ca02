"""Runs of the command line in their own processes, and faults that happen to them.

All are forked from one server that has imported everything and touched no device, because imports would take half of
the 12 s of such a process on two cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import multiprocessing
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import sklearn.datasets  # noqa: F401
import tensorboardX  # noqa: F401

from jaxvision import main, report
from jaxvision.checkpoint import Checkpoints
from jaxvision.cli.exit import run_and_exit
from jaxvision.parallel.preemption import Preemption
from jaxvision.run import program, result

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])

#: Eight steps of sixteen digits with everything that is random, saved at every second step.
ARGUMENTS = (
    "--config=configs/quickstart.py:resnet",
    "--config.model.image_size=16",
    "--config.augment.mixup=0.2",
    "--config.train.ema_decay=0.9",
    "--config.train.steps=8",
    "--config.train.evaluate_every=0.02",
    "--config.train.log_every=1",
    "--config.data.batch_size=16",
    "--config.checkpoint.best=None",
)


class Process:
    """``python -m jaxvision.main`` with `ARGUMENTS` and more. It calls `before` first.

    Attributes:
      out, err: its standard output and error, once `wait` has returned.
    """

    def __init__(self, workdir: Path, *arguments: str, devices: int = 1, before: Callable[[], object] | None = None):
        self._printed = Path(tempfile.mkdtemp())
        flags = [*ARGUMENTS, f"--workdir={workdir}", f"--config.mesh.data={devices}", *arguments]
        self._process = _SERVER.Process(target=_main, args=(flags, before, self._printed))
        self._process.start()
        self.pid = self._process.pid

    def wait(self, timeout: float = 300) -> int:
        """Returns the exit status, negative for a signal."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s")
        self.out, self.err = ((self._printed / name).read_text() for name in ("out", "err"))
        return self._process.exitcode

    def ended(self) -> bool:
        return self._process.exitcode is not None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _main(flags: list[str], before: Callable[[], object] | None, printed: Path) -> None:
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(printed / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["main.py", *flags]
    if before is not None:
        before()
    run_and_exit(lambda: main.main(flags))


# --- Faults: functions for `before`. Each wraps one public function of the package. ---


def _wrap(owner: Any, name: str, first: Callable[..., object]) -> None:
    """Replaces `owner.name` by a function that calls `first` with the same arguments before it."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def function(*args: Any, **options: Any) -> Any:
        first(*args, **options)
        return real(*args, **options)

    setattr(owner, name, function)


def fill(folder: Path, leave: int = 0) -> None:
    """Fills the disk of a folder, except for `leave` bytes."""
    space = os.statvfs(folder)
    with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        free = space.f_bavail * space.f_frsize - leave
        while free > 0:
            free -= file.write(bytes(min(free, 2**16)))
        while leave == 0:
            file.write(b"0")


def fill_at_metrics(folder: Path, step: int) -> None:
    """Fills the disk before the metrics of a step are written, and the block that holds the last line."""

    def full(metrics: report.MetricsWriter, number: int, *args: Any, **options: Any) -> None:
        if number == step:
            file = folder / "run" / "metrics.jsonl"
            with file.open("a") as lines:
                lines.write("\n" * (-file.stat().st_size % 2**12))
            fill(folder)

    _wrap(report.MetricsWriter, "write", full)


def fill_at_save(folder: Path, step: int) -> None:
    """Fills the disk before the checkpoint of a step is saved, except for a tenth of its size."""
    _wrap(Checkpoints, "save", lambda self, number, *a, **k: number == step and (self.wait(), fill(folder, 2**19)))


def fill_at_end(folder: Path, name: str) -> None:
    """Fills the disk before a function is called that writes a part of the result."""
    _wrap(report if name == "write_report" else result, name, lambda *a, **k: fill(folder))


def kill_at_save(step: int) -> None:
    """Kills the process with SIGKILL before it saves the checkpoint of a step; the one before is complete."""

    def kill(checkpoints: Checkpoints, number: int, *args: Any, **options: Any) -> None:
        if number == step:
            checkpoints.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    _wrap(Checkpoints, "save", kill)


def pause_at_save(step: int, marker: Path) -> None:
    """Creates the file `marker` before the checkpoint of a step is saved, and waits until it is deleted; once."""
    once = [step]

    def pause(checkpoints: Checkpoints, number: int, *args: Any, **options: Any) -> None:
        if number in once:
            once.clear()
            marker.touch()
            while marker.exists():
                time.sleep(0.02)

    _wrap(Checkpoints, "save", pause)


def obey_modes() -> None:
    """Drops CAP_DAC_OVERRIDE, root's right to write where the mode of a folder or file forbids it."""
    header = struct.pack("Ii", 0x20080522, 0)
    sets = ctypes.create_string_buffer(24)  # effective, permitted and inheritable, twice 32 bits
    libc = ctypes.CDLL(None)
    assert libc.capget(header, sets) == 0
    effective, *others = struct.unpack("6I", sets.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~0b10, *others)) == 0


def set_clock_back(step: int) -> None:
    """Sets the clock back by a day, and by another day when the metrics of a step are written."""
    day, late, real, real_ns = 86400, [1], time.time, time.time_ns
    time.time = lambda: real() - day * len(late)
    time.time_ns = lambda: real_ns() - day * len(late) * 10**9
    _wrap(report.MetricsWriter, "write", lambda _, number, *a, **k: number == step and late.append(1))


def make_nan(image: int, *others: Callable[[], object]) -> None:
    """Makes the pixels of one image NaN, and calls the `others`."""
    real = program.training_images

    def training_images(*args: Any, **options: Any) -> Any:
        prepare = real(*args, **options)

        def prepare_with_nan(batch: Any, step: Any) -> Any:
            images, targets = prepare(batch, step)
            return jnp.where((batch["index"] == image)[:, None, None, None], jnp.nan, images), targets

        return prepare_with_nan

    program.training_images = training_images
    for other in others:
        other()


def terminate_at(call: int) -> None:
    """Sends the process SIGTERM at a call of `Preemption.check`, which returns True from then on."""
    calls, check = itertools.count(1), Preemption.check

    def terminate(preemption: Preemption) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
            while not check(preemption):  # the signal reaches it in a thread
                time.sleep(0.01)

    _wrap(Preemption, "check", terminate)
