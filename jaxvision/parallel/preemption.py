"""SIGTERM: what a cluster sends some seconds before it takes a machine away."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any, NoReturn

import jax

from jaxvision.errors import Preempted
from jaxvision.parallel import distributed


class Preemption:
    """Listens for SIGTERM while a run goes on, so that the run can save and end.

    Until `working` is called nothing would be lost, and the process ends at once: compiling may take minutes, in which
    Python does not come to look at signals. From then on `check` tells, until `nothing_to_lose` is called. Of several
    processes all are told at the same call, whichever of them got the signal, by JAX's preemption service. A second
    SIGTERM changes nothing.

    In a thread other than the main one (a notebook's server) signals are not for us: nothing is listened for.

    Example:
      >>> with Preemption() as preemption:
      ...     preemption.working()
      ...     os.kill(os.getpid(), signal.SIGTERM)
      ...     while not preemption.check():
      ...         pass
    """

    def __init__(self) -> None:
        self._told = threading.Event()
        self._busy = False
        self._calls = 0
        self._old: tuple[Any, int] | None = None
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            # Python's own part of a signal waits until the main thread is back from XLA; the number comes down the pipe
            # at once, to a thread of ours.
            handler = signal.signal(signal.SIGTERM, lambda *_: None)
            self._old = handler, signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._listen, name="preemption", daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._old is not None and self._pipe is not None:
            signal.set_wakeup_fd(self._old[1])
            signal.signal(signal.SIGTERM, self._old[0] if self._old[0] is not None else signal.SIG_DFL)
            os.close(self._pipe[1])  # ends the thread
            self._old = self._pipe = None

    def _listen(self) -> None:
        assert self._pipe is not None
        pipe = self._pipe[0]
        with os.fdopen(pipe, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] == signal.SIGTERM:
                    self._told.set()
                    if not self._busy:
                        self._leave()

    def working(self) -> None:
        """Says that from now on there is something to save."""
        if not self._busy and jax.process_count() > 1:
            distributed.start_preemption_service()  # which takes the signal over
        self._busy = True

    def nothing_to_lose(self) -> None:
        """Says that all is saved."""
        self._busy = False
        if (
            self._old is not None and jax.process_count() > 1
        ):  # JAX's service has the signal, and nobody asks it any more
            signal.signal(signal.SIGTERM, lambda *_: None)
        if self._told.is_set():
            self._leave()

    def _leave(self) -> NoReturn:
        print("told to stop where nothing is to be saved; the same command goes on", file=sys.stderr, flush=True)
        sys.stdout.flush()
        for child in multiprocessing.active_children():  # they would go on waiting for work
            child.kill()
        os._exit(Preempted.STATUS)

    def check(self) -> bool:
        """Returns whether the run is to stop; the same on all processes, each of which calls it equally often."""
        if not self._busy:
            return False
        self._calls += 1
        if jax.process_count() == 1:
            return self._told.is_set()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(self._calls)
